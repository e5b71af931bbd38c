import type { JSX, Ref } from "preact";
import { useLayoutEffect, useRef } from "preact/hooks";

type Props = Omit<JSX.IntrinsicElements["textarea"], "ref" | "value"> & {
  value: string;
  field?: { current: HTMLTextAreaElement | null };
};

/** A text area as high as its text, up to what its style allows. */
export function GrowingArea({ value, field, ...rest }: Props) {
  const own = useRef<HTMLTextAreaElement>(null);
  const area = field ?? own;
  useLayoutEffect(() => {
    const element = area.current;
    if (!element) return;
    element.style.height = "auto";
    element.style.height = `${element.scrollHeight}px`;
  }, [value]);
  return <textarea rows={1} {...rest} ref={area as Ref<HTMLTextAreaElement>} value={value} />;
}

/** Enter that sends: not within a composition, not with a modifier, and not on a keyboard of glass, where it is the only way to a new line. */
export function sends(event: KeyboardEvent): boolean {
  return (
    event.key === "Enter" &&
    !(event.shiftKey || event.altKey || event.isComposing) &&
    (event.ctrlKey || event.metaKey || !matchMedia("(hover: none) and (pointer: coarse)").matches)
  );
}
