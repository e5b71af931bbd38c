// Markdown as elements. Text becomes tokens and tokens become nodes: no HTML is written or read anywhere on the way.

import { tex } from "@mdit/plugin-tex";
import MarkdownIt from "markdown-it";
import type Token from "markdown-it/lib/token.mjs";
import { type ComponentChildren, h } from "preact";
import { useMemo } from "preact/hooks";
import { Code } from "./code";
import { Maths } from "./maths";

const LINK = /^(https?:\/\/|mailto:)/i;

const markdown = new MarkdownIt({ html: false, linkify: true, breaks: true });
markdown.use(tex, { delimiters: "all", render: (content) => content });
// README.md and main.rs are not hosts: a link says so with its scheme.
markdown.linkify.set({ fuzzyLink: false });
markdown.validateLink = (url) => LINK.test(url.trim());

/** The elements that Markdown may make; headings stand below those of the page. */
const TAGS: Readonly<Record<string, string>> = {
  p: "p",
  h1: "h3",
  h2: "h4",
  h3: "h5",
  h4: "h6",
  h5: "h6",
  h6: "h6",
  ul: "ul",
  ol: "ol",
  li: "li",
  blockquote: "blockquote",
  table: "table",
  thead: "thead",
  tbody: "tbody",
  tr: "tr",
  th: "th",
  td: "td",
  strong: "strong",
  em: "em",
  s: "s",
};

interface Frame {
  readonly open: Token | null;
  readonly children: ComponentChildren[];
}

function nodes(tokens: readonly Token[]): ComponentChildren[] {
  const root: Frame = { open: null, children: [] };
  const stack: Frame[] = [root];
  for (const token of tokens) {
    const top = stack.at(-1) ?? root;
    if (token.nesting === 1) stack.push({ open: token, children: [] });
    else if (token.nesting === 0) top.children.push(leaf(token));
    else if (top.open) {
      stack.pop();
      (stack.at(-1) ?? root).children.push(branch(top.open, top.children));
    }
  }
  return root.children;
}

function branch(open: Token, children: ComponentChildren[]): ComponentChildren {
  if (open.hidden) return children;
  if (open.tag === "a") {
    return (
      <a href={open.attrGet("href") ?? undefined} target="_blank" rel="noopener noreferrer nofollow">
        {children}
      </a>
    );
  }
  const tag = TAGS[open.tag];
  if (!tag) return children;
  if (tag === "table") {
    return (
      <div class="table" tabIndex={0}>
        <table>{children}</table>
      </div>
    );
  }
  const start = tag === "ol" ? open.attrGet("start") : null;
  const align = /text-align:(\w+)/.exec(open.attrGet("style") ?? "")?.[1];
  return h(tag, { start: start ?? undefined, class: align && `align-${align}` }, children);
}

function leaf(token: Token): ComponentChildren {
  switch (token.type) {
    case "inline":
      return nodes(token.children ?? []);
    case "fence":
      return <Code text={token.content} language={token.info.trim().split(/\s+/)[0] ?? ""} />;
    case "code_block":
      return <Code text={token.content} language="" />;
    case "code_inline":
      return <code>{token.content}</code>;
    case "math_inline":
      return <Maths tex={token.content} display={false} />;
    case "math_block":
      return <Maths tex={token.content} display />;
    case "hr":
      return <hr />;
    case "hardbreak":
    case "softbreak":
      return <br />;
    case "image":
      // Nothing is fetched because a model said so: a picture is named, with its address.
      return `[${token.content || "picture"}: ${token.attrGet("src") ?? ""}]`;
    default:
      return token.content;
  }
}

interface Block {
  readonly source: string;
  readonly tokens: readonly Token[];
}

/** Cuts a text into its outermost blocks, each with the lines it came from. */
function blocks(text: string): Block[] {
  const lines = text.split("\n");
  const cut: Block[] = [];
  let tokens: Token[] = [];
  let [from, to] = [0, 0];
  for (const token of markdown.parse(text, {})) {
    if (tokens.length === 0) [from, to] = token.map ?? [to, to];
    tokens.push(token);
    if (token.level === 0 && token.nesting !== 1) {
      cut.push({ source: lines.slice(from, to).join("\n"), tokens });
      tokens = [];
    }
  }
  return cut;
}

// While an answer grows, all of its blocks but the last stay as they are: the same nodes are not compared again.
function BlockView({ source, tokens }: Block) {
  return useMemo(() => <>{nodes(tokens)}</>, [source]);
}

export function Markdown({ text }: { text: string }) {
  const cut = useMemo(() => blocks(text), [text]);
  return (
    <div class="prose">
      {cut.map((block, index) => (
        <BlockView key={index} {...block} />
      ))}
    </div>
  );
}
