// Loaded when the first block of code is met.

import type { RootContent } from "hast";
import { common, createLowlight } from "lowlight";

const lowlight = createLowlight(common);

/** The text in coloured parts, or null for a language that is not known. */
export function highlight(language: string, text: string): readonly RootContent[] | null {
  return lowlight.registered(language) ? lowlight.highlight(language, text).children : null;
}
