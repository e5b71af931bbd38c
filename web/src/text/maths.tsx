// A formula as MathML, built node by node; until the typesetter is here, or if it cannot read it, as its source.

import { signal } from "@preact/signals";
import { useLayoutEffect, useRef, useState } from "preact/hooks";

type Typeset = (tex: string, display: boolean, into: HTMLElement) => boolean;

const typeset = signal<Typeset | null>(null);
let asked = false;

function askForTypesetter(): void {
  if (asked) return;
  asked = true;
  void import("./typesetter").then((module) => {
    typeset.value = module.typeset;
  });
}

export function Maths({ tex, display }: { tex: string; display: boolean }) {
  const place = useRef<HTMLSpanElement>(null);
  const [done, setDone] = useState(false);
  const ready = typeset.value;
  askForTypesetter();
  useLayoutEffect(() => {
    if (ready && place.current) setDone(ready(tex, display, place.current));
  }, [tex, display, ready]);
  return (
    <span class={display ? "maths display" : "maths"}>
      <span ref={place} hidden={!done} />
      {!done && <code>{tex.trim()}</code>}
    </span>
  );
}
