import { useLayoutEffect, useRef, useState } from "preact/hooks";
import { Icon } from "./icons";

export interface Item {
  readonly label: string;
  readonly run: () => void;
  readonly grave?: boolean;
}

/** Three dots that open a list of actions; arrows move in it, Escape closes it. */
export function Menu({ label, items, upwards = false }: { label: string; items: readonly Item[]; upwards?: boolean }) {
  const [open, setOpen] = useState(false);
  const root = useRef<HTMLDivElement>(null);
  const close = (refocus: boolean) => {
    setOpen(false);
    if (refocus) root.current?.querySelector("button")?.focus();
  };
  useLayoutEffect(() => {
    if (!open) return;
    root.current?.querySelector<HTMLElement>("[role=menuitem]")?.focus();
    const away = (event: Event) => {
      if (!root.current?.contains(event.target as Node)) setOpen(false);
    };
    document.addEventListener("pointerdown", away);
    document.addEventListener("focusin", away);
    return () => {
      document.removeEventListener("pointerdown", away);
      document.removeEventListener("focusin", away);
    };
  }, [open]);
  const move = (event: KeyboardEvent) => {
    if (event.key === "Escape") {
      event.stopPropagation();
      close(true);
    }
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const all = [...(root.current?.querySelectorAll<HTMLElement>("[role=menuitem]") ?? [])];
    const at = all.indexOf(document.activeElement as HTMLElement);
    all.at((at + step + all.length) % all.length)?.focus();
  };
  return (
    <div class="menu" ref={root} onKeyDown={open ? move : undefined}>
      <button
        type="button"
        class="quiet"
        aria-label={label}
        aria-haspopup="menu"
        aria-expanded={open}
        onClick={() => setOpen(!open)}
      >
        <Icon name="dots" />
      </button>
      {open && (
        <div role="menu" class={upwards ? "upwards" : undefined}>
          {items.map(({ label, run, grave }) => (
            <button
              key={label}
              type="button"
              role="menuitem"
              tabIndex={-1}
              class={grave ? "grave" : undefined}
              onClick={() => {
                close(true);
                run();
              }}
            >
              {label}
            </button>
          ))}
        </div>
      )}
    </div>
  );
}
