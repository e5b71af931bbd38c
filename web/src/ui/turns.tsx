// One turn of a conversation: what the user said, or what the model answered.

import { useLayoutEffect, useRef, useState } from "preact/hooks";
import type { AnswerEntry, Chat, Entry } from "../model/chat";
import type { Answer } from "../model/schema";
import { askingKey, models } from "../state/app";
import { again, sendEdited } from "../state/run";
import { Markdown } from "../text/markdown";
import { ASKS_FOR_KEY } from "../wire/errors";
import { Calls } from "./calls";
import { CopyButton } from "./copy";
import { GrowingArea, sends } from "./growing";
import { Icon } from "./icons";
import { duration, Reasoning } from "./reasoning";
import { Versions } from "./versions";

export function UserTurn({ chat, entry, text }: { chat: Chat; entry: Entry; text: string }) {
  if (chat.editing.value === entry.id) return <Editor chat={chat} entry={entry} text={text} />;
  return (
    <article class="turn user" aria-label="You">
      <div class="said">{text}</div>
      <footer>
        <span class="actions">
          <CopyButton text={text} label="Copy message" />
          <button
            type="button"
            class="quiet"
            aria-label="Edit message"
            title="Edit message"
            disabled={chat.running.value !== null}
            onClick={() => (chat.editing.value = entry.id)}
          >
            <Icon name="pen" />
          </button>
        </span>
        <Versions chat={chat} entry={entry} />
      </footer>
    </article>
  );
}

function Editor({ chat, entry, text }: { chat: Chat; entry: Entry; text: string }) {
  const [draft, setDraft] = useState(text);
  const field = useRef<HTMLTextAreaElement>(null);
  useLayoutEffect(() => {
    field.current?.focus();
    field.current?.setSelectionRange(text.length, text.length);
  }, []);
  const close = () => {
    chat.editing.value = null;
    document.querySelector<HTMLElement>("#message")?.focus();
  };
  return (
    <article class="turn user editing" aria-label="You">
      <GrowingArea
        field={field}
        value={draft}
        aria-label="Edit message"
        onInput={({ currentTarget }) => setDraft(currentTarget.value)}
        onKeyDown={(event) => {
          if (event.key === "Escape") {
            event.stopPropagation();
            close();
          } else if (sends(event)) {
            event.preventDefault();
            sendEdited(chat, entry, draft);
          }
        }}
      />
      <footer>
        <button type="button" class="plain" onClick={close}>
          Cancel
        </button>
        <button type="button" class="solid" disabled={!draft.trim()} onClick={() => sendEdited(chat, entry, draft)}>
          Send
        </button>
      </footer>
    </article>
  );
}

export function AnswerTurn({ chat, entry }: { chat: Chat; entry: AnswerEntry }) {
  const answer = entry.message.value;
  const running = answer.state === "running";
  return (
    <article class="turn answer" aria-label="Answer" aria-busy={running}>
      <Reasoning answer={answer} />
      {answer.text && <Markdown text={answer.text} />}
      {answer.calls.length > 0 && <Calls chat={chat} entry={entry} />}
      {!running && <Outcome chat={chat} entry={entry} />}
      {!running && (
        <footer>
          <span class="actions">
            {answer.text && <CopyButton text={answer.text} label="Copy answer" />}
            <button
              type="button"
              class="quiet"
              aria-label="Regenerate"
              title="Regenerate"
              disabled={chat.running.value !== null}
              onClick={() => again(chat, entry)}
            >
              <Icon name="again" />
            </button>
          </span>
          <Versions chat={chat} entry={entry} />
          <Facts answer={answer} />
        </footer>
      )}
    </article>
  );
}

/** How the answer ended, where that is not with its own last word. */
function Outcome({ chat, entry }: { chat: Chat; entry: AnswerEntry }) {
  const { state, error, text, reasoning, calls } = entry.message.value;
  const partial = text || reasoning;
  switch (state) {
    case "failed":
      return (
        <div class="failure" role="alert">
          <p>
            {error} {partial && "What had arrived is kept."}
          </p>
          {error === ASKS_FOR_KEY ? (
            <button type="button" class="plain" onClick={() => (askingKey.value = true)}>
              Enter a key
            </button>
          ) : (
            <button type="button" class="plain" onClick={() => again(chat, entry)}>
              Try again
            </button>
          )}
        </div>
      );
    case "stopped":
      return <p class="remark">{partial ? "Stopped." : "Stopped before it began."}</p>;
    case "length":
      return <p class="remark">Cut off: the limit of tokens was reached.</p>;
    default:
      return partial || calls.length > 0 ? null : <p class="remark">The answer is empty.</p>;
  }
}

/** Milliseconds of writing from which a speed says something. */
const LEAST_WRITING = 10;

const number = (value: number) => value.toLocaleString("en");

function Facts({ answer }: { answer: Answer }) {
  const { usage, timing, model, effort } = answer;
  if (!usage) return null;
  const writing = timing.total - (timing.first ?? 0);
  const speed = usage.completion > 1 && writing >= LEAST_WRITING ? ((usage.completion - 1) * 1000) / writing : null;
  const context = models.value.find(({ id }) => id === model)?.context;
  const used = usage.prompt + usage.completion;
  const details = [
    `Model ${model}, ${effort} effort.`,
    `Prompt: ${number(usage.prompt)} tokens, ${number(usage.cached)} of them cached.`,
    `Answer: ${number(usage.completion)} tokens, ${number(usage.reasoning)} of them reasoning.`,
    timing.first === null ? "" : `First token after ${duration(timing.first)}, ${duration(timing.total)} in all.`,
    context ? `Context: ${number(used)} of ${number(context)} tokens.` : "",
  ];
  return (
    <span class="facts" title={details.filter(Boolean).join("\n")}>
      <span>{effort}</span>
      <span>{number(usage.completion)} tokens</span>
      {speed !== null && <span>{speed < 10 ? speed.toFixed(1) : number(Math.round(speed))} tokens/s</span>}
      {timing.first !== null && <span class="dispensable">first after {(timing.first / 1000).toFixed(2)} s</span>}
    </span>
  );
}
