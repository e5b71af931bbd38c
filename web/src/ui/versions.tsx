import type { Chat, Entry } from "../model/chat";
import { keep } from "../state/app";
import { Icon } from "./icons";

/** ‹ 2/3 ›: which version of a turn is shown, and the way to the others. */
export function Versions({ chat, entry }: { chat: Chat; entry: Entry }) {
  const all = chat.versions(entry.parent);
  if (all.length < 2) return null;
  const at = all.indexOf(entry);
  const go = (to: number) => {
    const version = all[to];
    if (!version) return;
    chat.show(version.id);
    keep(chat);
  };
  return (
    <span class="versions" role="group" aria-label="Versions">
      <button type="button" class="quiet" aria-label="Earlier version" disabled={at === 0} onClick={() => go(at - 1)}>
        <Icon name="left" />
      </button>
      <span>
        {at + 1}/{all.length}
      </span>
      <button
        type="button"
        class="quiet"
        aria-label="Later version"
        disabled={at === all.length - 1}
        onClick={() => go(at + 1)}
      >
        <Icon name="right" />
      </button>
    </span>
  );
}
