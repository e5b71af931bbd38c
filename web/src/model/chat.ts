// A conversation while it is open: the same tree, made of signals, so that a growing answer redraws itself alone.

import { computed, type ReadonlySignal, type Signal, signal } from "@preact/signals";
import type { Answer, Conversation, Message, Settings } from "./schema";

export interface Entry {
  readonly id: string;
  readonly parent: string | null;
  readonly message: Signal<Message>;
}

/** An entry that is known to hold an answer. */
export interface AnswerEntry extends Entry {
  readonly message: Signal<Answer>;
}

export const isAnswer = (entry: Entry | undefined): entry is AnswerEntry => entry?.message.value.role === "answer";

/** Random and unique; crypto.randomUUID is missing where the page is served over plain HTTP. */
export function newId(): string {
  return Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

const TITLE_LENGTH = 80;

export class Chat {
  readonly id: string;
  readonly created: number;
  readonly title: Signal<string>;
  readonly updated: Signal<number>;
  readonly settings: Signal<Settings>;
  readonly draft = signal("");
  /** The entry whose user message is being edited. */
  readonly editing = signal<string | null>(null);
  /** Ends the answer that is being written. */
  readonly running = signal<AbortController | null>(null);
  /** The entries from the first to the last one shown. */
  readonly path: ReadonlySignal<readonly Entry[]>;

  readonly #entries: Signal<readonly Entry[]>;
  readonly #shown: Signal<ReadonlySet<string>>;
  readonly #children: ReadonlySignal<ReadonlyMap<string | null, readonly Entry[]>>;

  constructor(from: Conversation) {
    this.id = from.id;
    this.created = from.created;
    this.title = signal(from.title);
    this.updated = signal(from.updated);
    this.settings = signal(from.settings);
    this.#entries = signal(from.entries.map(({ id, parent, message }) => ({ id, parent, message: signal(message) })));
    this.#shown = signal(new Set(from.shown));
    this.#children = computed(() => {
      const children = new Map<string | null, Entry[]>();
      for (const entry of this.#entries.value) {
        const siblings = children.get(entry.parent);
        if (siblings) siblings.push(entry);
        else children.set(entry.parent, [entry]);
      }
      return children;
    });
    this.path = computed(() => {
      const path: Entry[] = [];
      for (let next = this.child(null); next; next = this.child(next.id)) path.push(next);
      return path;
    });
  }

  static begin(settings: Settings): Chat {
    const now = Date.now();
    return new Chat({ id: newId(), title: "", created: now, updated: now, settings, entries: [], shown: [] });
  }

  get isEmpty(): boolean {
    return this.#entries.value.length === 0;
  }

  /** All versions of the turn after `parent`. */
  versions(parent: string | null): readonly Entry[] {
    return this.#children.value.get(parent) ?? [];
  }

  /** The version that is shown after `parent`: the one chosen, or else the newest. */
  child(parent: string | null): Entry | undefined {
    const versions = this.versions(parent);
    return versions.find(({ id }) => this.#shown.value.has(id)) ?? versions.at(-1);
  }

  /** The entries from the first to `id`, whatever is shown. */
  lineage(id: string | null): readonly Entry[] {
    const byId = new Map(this.#entries.value.map((entry) => [entry.id, entry]));
    const line: Entry[] = [];
    for (let entry = id === null ? undefined : byId.get(id); entry; ) {
      line.unshift(entry);
      entry = entry.parent === null ? undefined : byId.get(entry.parent);
    }
    return line;
  }

  add<M extends Message>(parent: string | null, message: M): Entry & { readonly message: Signal<M> } {
    const entry = { id: newId(), parent, message: signal(message) };
    this.#entries.value = [...this.#entries.value, entry as unknown as Entry];
    this.show(entry.id);
    if (!this.title.value && message.role === "user") {
      this.title.value = message.text.replace(/\s+/g, " ").trim().slice(0, TITLE_LENGTH);
    }
    return entry;
  }

  /** Takes back an entry that nothing follows. */
  drop(id: string): void {
    this.#entries.value = this.#entries.value.filter((entry) => entry.id !== id);
  }

  show(id: string): void {
    const parent = this.#entries.value.find((entry) => entry.id === id)?.parent ?? null;
    const shown = new Set(this.#shown.value);
    for (const version of this.versions(parent)) shown.delete(version.id);
    this.#shown.value = shown.add(id);
    this.touch();
  }

  touch(): void {
    this.updated.value = Date.now();
  }

  /** Does any text of it hold `words` (in small letters)? */
  mentions(words: string): boolean {
    return (
      this.title.value.toLowerCase().includes(words) ||
      this.#entries.value.some(({ message: { value } }) =>
        (value.role === "results" ? value.texts.join("\n") : value.text).toLowerCase().includes(words),
      )
    );
  }

  toJSON(): Conversation {
    const present = new Set(this.#entries.peek().map(({ id }) => id));
    return {
      id: this.id,
      title: this.title.peek(),
      created: this.created,
      updated: this.updated.peek(),
      settings: this.settings.peek(),
      entries: this.#entries.peek().map(({ id, parent, message }) => ({ id, parent, message: message.peek() })),
      shown: [...this.#shown.peek()].filter((id) => present.has(id)),
    };
  }
}
