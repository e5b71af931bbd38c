// The calls of an answer as cards, and the boxes in which the user says what came of them.

import { useState } from "preact/hooks";
import type { AnswerEntry, Chat } from "../model/chat";
import type { Call } from "../model/schema";
import { giveResults } from "../state/run";
import { GrowingArea } from "./growing";
import { Icon } from "./icons";
import { Versions } from "./versions";

function Arguments({ text }: { text: string }) {
  let shown = text;
  let sound = true;
  try {
    shown = JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    sound = false;
  }
  return (
    <>
      <pre class="arguments" tabIndex={0}>
        {shown}
      </pre>
      {!sound && <p class="remark">These arguments are not JSON.</p>}
    </>
  );
}

export function Calls({ chat, entry }: { chat: Chat; entry: AnswerEntry }) {
  const { calls, state } = entry.message.value;
  const next = chat.child(entry.id);
  const given = next?.message.value.role === "results" ? next.message.value.texts : null;
  const [drafts, setDrafts] = useState<readonly string[]>([]);
  const [revising, setRevising] = useState(false);
  const writing = state === "done" && (given === null || revising);
  const finish = () => {
    setRevising(false);
    giveResults(chat, entry, calls.map((_, index) => drafts[index] ?? ""));
  };
  const change = (index: number, text: string) =>
    setDrafts(calls.map((_, other) => (other === index ? text : (drafts[other] ?? ""))));
  const card = (call: Call, index: number) => (
    <li class="call" key={index}>
      <h3>
        <Icon name="function" />
        <span class="name">{call.name}</span>
      </h3>
      {(state === "running" || call.arguments) && (state === "running" ? <pre>{call.arguments}</pre> : <Arguments text={call.arguments} />)}
      {writing && (
        <label>
          <span>Result</span>
          <GrowingArea
            value={drafts[index] ?? ""}
            placeholder="What the function returned"
            spellcheck={false}
            disabled={chat.running.value !== null}
            onInput={({ currentTarget }) => change(index, currentTarget.value)}
            onKeyDown={(event) => {
              if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) finish();
            }}
          />
        </label>
      )}
      {!writing && given && (
        <div class="result">
          <span>Result</span>
          <pre tabIndex={0}>{given[index] || "(empty)"}</pre>
        </div>
      )}
    </li>
  );
  return (
    <section class="calls" aria-label="Calls of tools">
      <ol>{calls.map(card)}</ol>
      <footer>
        {writing && (
          <button type="button" class="solid" disabled={chat.running.value !== null} onClick={finish}>
            Continue
          </button>
        )}
        {writing && revising && (
          <button type="button" class="plain" onClick={() => setRevising(false)}>
            Cancel
          </button>
        )}
        {given && !revising && next && (
          <>
            <Versions chat={chat} entry={next} />
            <button
              type="button"
              class="plain"
              disabled={chat.running.value !== null}
              onClick={() => {
                setDrafts(given);
                setRevising(true);
              }}
            >
              Change the {calls.length > 1 ? "results" : "result"}
            </button>
          </>
        )}
      </footer>
    </section>
  );
}
