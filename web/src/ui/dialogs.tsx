import type { ComponentChildren } from "preact";
import { useLayoutEffect, useRef, useState } from "preact/hooks";
import { isAnswer } from "../model/chat";
import { askingKey, current, helping, loadModels, outage } from "../state/app";
import { apiKey, keepKey } from "../state/prefs";
import { again } from "../state/run";
import { ASKS_FOR_KEY } from "../wire/errors";
import { Icon } from "./icons";

function Dialog({ title, close, children }: { title: string; close: () => void; children: ComponentChildren }) {
  const dialog = useRef<HTMLDialogElement>(null);
  useLayoutEffect(() => dialog.current?.showModal(), []);
  return (
    <dialog
      ref={dialog}
      aria-label={title}
      onClose={close}
      onKeyDown={(event) => event.stopPropagation()}
      onClick={(event) => {
        if (event.target === dialog.current) dialog.current?.close();
      }}
    >
      <div class="sheet">
        <header>
          <h2>{title}</h2>
          <button type="button" class="quiet" aria-label="Close" onClick={() => dialog.current?.close()}>
            <Icon name="close" />
          </button>
        </header>
        {children}
      </div>
    </dialog>
  );
}

export function KeyDialog() {
  const [key, setKey] = useState(apiKey());
  const [lasting, setLasting] = useState(false);
  const [tried, setTried] = useState(false);
  const refused = tried && outage.value === ASKS_FOR_KEY;
  const submit = async () => {
    keepKey(key.trim(), lasting);
    await loadModels();
    setTried(true);
    if (outage.value === ASKS_FOR_KEY) return;
    askingKey.value = false;
    const chat = current.value;
    const last = chat.path.value.at(-1);
    if (isAnswer(last) && last.message.value.error === ASKS_FOR_KEY) again(chat, last);
  };
  return (
    <Dialog title="API key" close={() => (askingKey.value = false)}>
      <form
        onSubmit={(event) => {
          event.preventDefault();
          void submit();
        }}
      >
        <p>{outage.value === ASKS_FOR_KEY ? "This server asks for a key." : "Sent with each request to this server."}</p>
        <label>
          <span class="unseen">API key</span>
          <input
            type="password"
            autoComplete="off"
            autofocus
            value={key}
            aria-invalid={refused}
            onInput={({ currentTarget }) => setKey(currentTarget.value)}
          />
        </label>
        {refused && (
          <p class="grave" role="alert">
            The server did not accept this key.
          </p>
        )}
        <label class="check">
          <input type="checkbox" checked={lasting} onChange={({ currentTarget }) => setLasting(currentTarget.checked)} />
          Keep it in this browser, not only in this tab
        </label>
        <footer>
          <button type="submit" class="solid">
            Use this key
          </button>
        </footer>
      </form>
    </Dialog>
  );
}

const command = /Mac|iPhone|iPad/.test(navigator.platform) ? "⌘" : "Ctrl";

const KEYS: readonly (readonly [readonly string[], string])[] = [
  [["Enter"], "send"],
  [["Shift", "Enter"], "new line"],
  [["Esc"], "stop the answer; close what is open"],
  [["↑"], "edit the last message, from an empty field"],
  [["/"], "to the message field"],
  [[command, "K"], "new chat"],
  [[command, "Enter"], "continue with the results of tools"],
  [["?"], "this list"],
];

export function HelpDialog() {
  return (
    <Dialog title="Keyboard" close={() => (helping.value = false)}>
      <dl class="keys">
        {KEYS.map(([keys, does]) => (
          <div key={does}>
            <dt>
              {keys.map((key) => (
                <kbd key={key}>{key}</kbd>
              ))}
            </dt>
            <dd>{does}</dd>
          </div>
        ))}
      </dl>
    </Dialog>
  );
}
