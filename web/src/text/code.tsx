// A block of code: coloured once the highlighter is here, with its language and a button that copies it.

import { signal } from "@preact/signals";
import type { RootContent } from "hast";
import type { ComponentChildren } from "preact";
import { useMemo } from "preact/hooks";
import { CopyButton } from "../ui/copy";

type Highlight = (language: string, text: string) => readonly RootContent[] | null;

/** Longer blocks stay plain: colouring them at each step of a growing answer would be slow. */
const LONGEST = 30_000;

const highlight = signal<Highlight | null>(null);
let asked = false;

function askForHighlighter(): void {
  if (asked) return;
  asked = true;
  void import("./highlighter").then((module) => {
    highlight.value = module.highlight;
  });
}

function nodes(content: readonly RootContent[]): ComponentChildren[] {
  return content.map((node) => {
    if (node.type === "text") return node.value;
    if (node.type !== "element") return null;
    const { className } = node.properties;
    return <span class={Array.isArray(className) ? className.join(" ") : undefined}>{nodes(node.children)}</span>;
  });
}

export function Code({ text, language }: { text: string; language: string }) {
  const body = text.replace(/\n$/, "");
  const wanted = language !== "" && body.length <= LONGEST;
  if (wanted) askForHighlighter();
  const ready = highlight.value;
  const coloured = useMemo(() => {
    const content = wanted && ready ? ready(language, body) : null;
    return content ? nodes(content) : body;
  }, [body, language, wanted, ready]);
  return (
    <figure class="code">
      <figcaption>
        <span>{language || "text"}</span>
        <CopyButton text={body} label="Copy code" />
      </figcaption>
      <pre tabIndex={0}>
        <code>{coloured}</code>
      </pre>
    </figure>
  );
}
