// Where the user writes: the message, the effort, what else is set, and how full the context is.

import { useLayoutEffect, useRef } from "preact/hooks";
import { isAnswer } from "../model/chat";
import { EFFORTS } from "../model/schema";
import { readTools } from "../model/tools";
import { adjust, adjusting, current, isDemo, model } from "../state/app";
import { send, stop } from "../state/run";
import { GrowingArea, sends } from "./growing";
import { Icon } from "./icons";

export function Composer() {
  const chat = current.value;
  const field = useRef<HTMLTextAreaElement>(null);
  const running = chat.running.value !== null;
  useLayoutEffect(() => {
    // A glass keyboard is only to come up when it is asked for.
    if (matchMedia("(hover: hover)").matches) field.current?.focus();
  }, [chat]);
  const submit = () => send(chat, chat.draft.value);
  const keys = (event: KeyboardEvent) => {
    if (sends(event)) {
      event.preventDefault();
      submit();
    } else if (event.key === "ArrowUp" && !chat.draft.value && !running) {
      const last = chat.path.value.findLast((entry) => entry.message.value.role === "user");
      if (!last) return;
      event.preventDefault();
      chat.editing.value = last.id;
    }
  };
  return (
    <form
      class="composer"
      onSubmit={(event) => {
        event.preventDefault();
        submit();
      }}
    >
      <div class="box">
        <GrowingArea
          field={field}
          id="message"
          value={chat.draft.value}
          placeholder={isDemo.value ? "Ask for some arithmetic" : "Write a message"}
          aria-label="Message"
          onInput={({ currentTarget }) => (chat.draft.value = currentTarget.value)}
          onKeyDown={keys}
        />
        <div class="row">
          <Effort />
          <Chips />
          {running ? (
            <button type="button" class="send" aria-label="Stop" title="Stop (Esc)" onClick={() => stop(chat)}>
              <Icon name="stop" />
            </button>
          ) : (
            <button type="submit" class="send" aria-label="Send" title="Send (Enter)" disabled={!chat.draft.value.trim()}>
              <Icon name="up" />
            </button>
          )}
        </div>
      </div>
      <Context />
    </form>
  );
}

function Effort() {
  const { effort } = current.value.settings.value;
  return (
    <fieldset class="segments">
      <legend class="unseen">Reasoning effort</legend>
      {EFFORTS.map((level) => (
        <label key={level} title={`Reasoning effort: ${level}`}>
          <input
            type="radio"
            name="effort"
            value={level}
            checked={effort === level}
            onChange={() => adjust({ effort: level })}
          />
          <span>{level}</span>
        </label>
      ))}
    </fieldset>
  );
}

/** What is set beside the effort, so that nothing acts unseen. */
function Chips() {
  const { system, temperature, topP, maxTokens, seed, tools } = current.value.settings.value;
  const read = readTools(tools);
  const chips = [
    system.trim() && "system prompt",
    read.error !== null ? "tools: not valid" : read.tools.length > 0 && count(read.tools.length, "tool"),
    temperature !== null && `temperature ${temperature}`,
    topP !== null && `top-p ${topP}`,
    maxTokens !== null && `at most ${maxTokens} tokens`,
    seed !== null && `seed ${seed}`,
  ].filter((chip) => typeof chip === "string" && chip !== "");
  return (
    <span class="chips">
      {chips.map((chip) => (
        <button
          key={chip}
          type="button"
          class={chip === "tools: not valid" ? "grave" : undefined}
          onClick={() => (adjusting.value = true)}
        >
          {chip}
        </button>
      ))}
    </span>
  );
}

const count = (number: number, noun: string) => `${number} ${noun}${number === 1 ? "" : "s"}`;

function Context() {
  const last = current.value.path.value.findLast((entry) => isAnswer(entry) && entry.message.value.usage !== null);
  const usage = isAnswer(last) ? last.message.value.usage : null;
  const used = usage ? usage.prompt + usage.completion : 0;
  const length = model.value?.context;
  return (
    <p class="context">
      {usage && length ? (
        <>
          <meter min={0} max={length} high={length * 0.85} value={used} aria-label="Context used" />
          {used.toLocaleString("en")} of {length.toLocaleString("en")} tokens of context
        </>
      ) : (
        <span class="hint">
          <kbd>Enter</kbd> sends · <kbd>Shift</kbd> <kbd>Enter</kbd> new line · <kbd>?</kbd> all keys
        </span>
      )}
    </p>
  );
}
