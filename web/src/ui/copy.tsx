import { useEffect, useState } from "preact/hooks";
import { tell } from "../state/app";
import { Icon } from "./icons";

/** Also where the page is served over plain HTTP, and the browser's clipboard is closed to it. */
async function copy(text: string): Promise<boolean> {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const field = document.createElement("textarea");
    field.value = text;
    field.className = "unseen";
    document.body.append(field);
    field.select();
    const copied = document.execCommand("copy");
    field.remove();
    return copied;
  }
}

export function CopyButton({ text, label }: { text: string; label: string }) {
  const [copied, setCopied] = useState(false);
  useEffect(() => {
    if (!copied) return;
    const timer = setTimeout(() => setCopied(false), 1500);
    return () => clearTimeout(timer);
  }, [copied]);
  const act = async () => {
    if (await copy(text)) setCopied(true);
    else tell("The browser did not allow the copy.");
  };
  return (
    <button type="button" class="quiet" aria-label={copied ? "Copied" : label} title={label} onClick={() => void act()}>
      <Icon name={copied ? "check" : "copy"} />
    </button>
  );
}
