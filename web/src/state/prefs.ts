// What the page remembers of the person: theme, panels, key, and the settings a new conversation starts with.

import { effect, type Signal, signal } from "@preact/signals";
import * as v from "valibot";
import { DEFAULTS, Settings } from "../model/schema";

/** A signal that is kept in `storage`; what cannot be read, or is not of `schema`, is `initial`. */
function kept<T>(name: string, schema: v.GenericSchema<unknown, T>, initial: T, storage: Storage): Signal<T> {
  const key = `ossia.${name}`;
  let value = initial;
  try {
    const read = v.safeParse(schema, JSON.parse(storage.getItem(key) ?? "null"));
    if (read.success) value = read.output;
  } catch {
    // Blocked or damaged storage: the page works without.
  }
  const held = signal(value);
  let first = true;
  effect(() => {
    const text = JSON.stringify(held.value);
    if (first) {
      first = false;
      return;
    }
    try {
      storage.setItem(key, text);
    } catch {
      // As above.
    }
  });
  return held;
}

export const theme = kept("theme", v.picklist(["system", "light", "dark"]), "system", localStorage);
export const sidebar = kept("sidebar", v.boolean(), true, localStorage);
export const defaults = kept("settings", Settings, DEFAULTS, localStorage);

const lasting = kept("key", v.string(), "", localStorage);
const passing = kept("key", v.string(), "", sessionStorage);

export const apiKey = (): string => passing.value || lasting.value;

/** Keeps the key for this tab, or, if told, in this browser. */
export function keepKey(key: string, lastingly: boolean): void {
  passing.value = key;
  lasting.value = lastingly ? key : "";
}

effect(() => {
  document.documentElement.dataset.theme = theme.value;
});
