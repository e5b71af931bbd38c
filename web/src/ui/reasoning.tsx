import { useLayoutEffect, useRef, useState } from "preact/hooks";
import type { Answer } from "../model/schema";
import { Icon } from "./icons";

export function duration(milliseconds: number): string {
  if (milliseconds < 50) return "a moment";
  const seconds = milliseconds / 1000;
  if (seconds < 59.95) return `${seconds.toFixed(1)} s`;
  return `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
}

/** What the model thought: open while it thinks, then folded to how long that took, unless the reader says otherwise. */
export function Reasoning({ answer }: { answer: Answer }) {
  const thinking = answer.state === "running" && !answer.text && answer.calls.length === 0;
  const [wish, setWish] = useState<boolean | null>(null);
  const open = wish ?? thinking;
  const body = useRef<HTMLDivElement>(null);
  const follows = useRef(true);
  useLayoutEffect(() => {
    const element = body.current;
    if (element && thinking && follows.current) element.scrollTop = element.scrollHeight;
  }, [answer.reasoning, open, thinking]);
  if (!answer.reasoning) return thinking ? <p class="thinking waiting">Thinking</p> : null;
  return (
    <section class="reasoning" aria-label="Reasoning">
      <button type="button" class="fold" aria-expanded={open} onClick={() => setWish(!open)}>
        <Icon name="right" />
        <span class={thinking ? "thinking" : undefined}>
          {thinking ? "Thinking" : `Thought for ${duration(answer.timing.reasoning)}`}
        </span>
      </button>
      {open && (
        <div
          class={thinking ? "thoughts live" : "thoughts"}
          ref={body}
          tabIndex={0}
          onScroll={({ currentTarget: { scrollTop, scrollHeight, clientHeight } }) => {
            follows.current = scrollHeight - scrollTop - clientHeight < 24;
          }}
        >
          {answer.reasoning}
        </div>
      )}
    </section>
  );
}
