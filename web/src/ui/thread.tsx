// The open conversation, and the scrolling that follows a growing answer until the reader looks elsewhere.

import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { isAnswer } from "../model/chat";
import { announcement, current } from "../state/app";
import { Icon } from "./icons";
import { AnswerTurn, UserTurn } from "./turns";
import { Welcome } from "./welcome";

/** Pixels from the end within which the reader counts as being at it. */
const NEAR = 48;

export function Thread() {
  const chat = current.value;
  const frame = useRef<HTMLElement>(null);
  const content = useRef<HTMLDivElement>(null);
  const follows = useRef(true);
  const [away, setAway] = useState(false);

  const toEnd = (behavior: ScrollBehavior = "instant") => {
    follows.current = true;
    frame.current?.scrollTo({ top: frame.current.scrollHeight, behavior });
  };

  useLayoutEffect(() => {
    toEnd();
    setAway(false);
  }, [chat]);

  // One's own message is always brought into view.
  const { length } = chat.path.value;
  const running = chat.running.value !== null;
  useLayoutEffect(() => {
    if (running) toEnd();
  }, [length, running]);

  useEffect(() => {
    const element = frame.current;
    if (!element || !content.current) return;
    let last = element.scrollTop;
    const moved = () => {
      const left = element.scrollHeight - element.scrollTop - element.clientHeight;
      // Only a movement upwards is the reader's for certain: growth alone also leaves the end behind.
      if (element.scrollTop < last - 1) follows.current = false;
      if (left < NEAR && element.scrollTop >= last) follows.current = true;
      last = element.scrollTop;
      setAway(left > 4 * NEAR);
    };
    element.addEventListener("scroll", moved, { passive: true });
    const growth = new ResizeObserver(() => {
      if (follows.current) element.scrollTop = element.scrollHeight;
      else moved();
    });
    growth.observe(content.current);
    growth.observe(element);
    return () => {
      element.removeEventListener("scroll", moved);
      growth.disconnect();
    };
  }, []);

  return (
    <main class="thread" ref={frame} tabIndex={-1}>
      <div class="column" ref={content}>
        {chat.isEmpty ? (
          <Welcome />
        ) : (
          chat.path.value.map((entry) => {
            const { value } = entry.message;
            if (value.role === "user") return <UserTurn key={entry.id} chat={chat} entry={entry} text={value.text} />;
            if (isAnswer(entry)) return <AnswerTurn key={entry.id} chat={chat} entry={entry} />;
            return null;
          })
        )}
      </div>
      {away && (
        <button type="button" class="to-end" aria-label="To the end" title="To the end" onClick={() => toEnd("smooth")}>
          <Icon name="down" />
        </button>
      )}
      <div class="unseen" role="status" aria-live="polite">
        {announcement.value}
      </div>
    </main>
  );
}
