// Loaded when the first formula is met.

import katex from "katex";

/** Sets a formula into an element. Returns false, and leaves the element empty, if it cannot be read. */
export function typeset(tex: string, display: boolean, into: HTMLElement): boolean {
  try {
    katex.render(tex, into, {
      output: "mathml",
      displayMode: display,
      throwOnError: true,
      strict: "ignore",
      trust: false,
      maxSize: 20,
      maxExpand: 500,
      // The two commands whose MathML has a style attribute, which the page's content policy forbids.
      macros: { "\\fcolorbox": "\\colorbox{#2}{#3}", "\\pmb": "\\boldsymbol{#1}" },
    });
    return true;
  } catch {
    into.replaceChildren();
    return false;
  }
}
