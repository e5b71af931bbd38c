// What the page is showing: the conversations, the one that is open, the server's models, and passing notices.

import { computed, effect, signal } from "@preact/signals";
import { Chat } from "../model/chat";
import type { Conversation, Settings } from "../model/schema";
import { type Change, Store } from "../model/store";
import { newcomers, readFile } from "../model/transfer";
import { type Model, models as fetchModels } from "../wire/client";
import { ServerError } from "../wire/errors";
import { apiKey, defaults } from "./prefs";

export const chats = signal<readonly Chat[]>([]);
export const current = signal(Chat.begin(defaults.peek()));
export const ready = signal(false);

export const models = signal<readonly Model[]>([]);
/** Why there are no models, as a sentence. */
export const outage = signal("");
export const askingKey = signal(false);
export const helping = signal(false);
export const adjusting = signal(false);

export interface Notice {
  readonly text: string;
  readonly action?: { readonly label: string; readonly run: () => void };
}
export const notice = signal<Notice | null>(null);
/** Read out to those who do not see the page. */
export const announcement = signal("");

/** The model that the open conversation asks: the one it names, if the server has it. */
export const model = computed<Model | undefined>(() => {
  const { model: wanted } = current.value.settings.value;
  return models.value.find(({ id }) => id === wanted) ?? models.value[0];
});

export const isDemo = computed(() => /(^|[-/])demo$/.test(model.value?.id ?? ""));

let store: Store | null = null;
const SAVE_AFTER = 400;
const waiting = new Map<string, ReturnType<typeof setTimeout>>();

let dismissal: ReturnType<typeof setTimeout> | undefined;
export function tell(text: string, action?: Notice["action"]): void {
  notice.value = action ? { text, action } : { text };
  clearTimeout(dismissal);
  dismissal = setTimeout(() => {
    notice.value = null;
  }, action ? 8000 : 4000);
}

// ---------------------------------------------------------------- the server

export async function loadModels(): Promise<void> {
  try {
    models.value = await fetchModels(apiKey());
    outage.value = models.value.length > 0 ? "" : "The server has no model.";
  } catch (error) {
    models.value = [];
    outage.value = error instanceof ServerError ? error.message : "The list of models could not be loaded.";
    if (error instanceof ServerError && error.wantsKey) askingKey.value = true;
  }
}

// ---------------------------------------------------------------- keeping

/** Puts `chat` into the list, if it is not there, and into the database soon. */
export function keep(chat: Chat): void {
  if (!chats.value.includes(chat)) chats.value = [chat, ...chats.value];
  if (waiting.has(chat.id)) return;
  waiting.set(chat.id, setTimeout(() => void save(chat), SAVE_AFTER));
}

async function save(chat: Chat): Promise<void> {
  clearTimeout(waiting.get(chat.id));
  waiting.delete(chat.id);
  try {
    await store?.save(chat.toJSON());
  } catch {
    tell("This conversation could not be saved: the browser's storage is full or blocked.");
  }
}

/** Saves at once what waits to be saved: the page may be about to go. */
export function saveAll(): void {
  for (const chat of chats.value) if (waiting.has(chat.id)) void save(chat);
}

export async function openStore(): Promise<void> {
  let records: readonly Conversation[] = [];
  try {
    store = await Store.open();
    records = await store.all();
    store.listen((change) => void follow(change));
  } catch {
    tell("This browser keeps nothing for the page: conversations end with it. Export those you need.");
  }
  // What was begun while the database was opening comes first.
  chats.value = [...chats.value, ...records.map((record) => new Chat(record))];
  ready.value = true;
  openAddressed();
}

/** Another tab has saved or removed a conversation. */
async function follow({ kind, id }: Change): Promise<void> {
  const here = chats.value.find((chat) => chat.id === id);
  if (here && (here.running.value || here.editing.value !== null || waiting.has(id))) return;
  const record = kind === "saved" ? await store?.get(id) : undefined;
  const fresh = record && new Chat(record);
  if (fresh && here) fresh.draft.value = here.draft.value;
  const others = chats.value.filter((chat) => chat !== here);
  chats.value = fresh ? [fresh, ...others] : others;
  if (here && current.value === here) current.value = fresh ?? Chat.begin(defaults.peek());
}

// ---------------------------------------------------------------- conversations

export function open(chat: Chat): void {
  current.value = chat;
  const hash = chats.value.includes(chat) ? `#${chat.id}` : "";
  if (location.hash !== hash) history.pushState(null, "", hash || location.pathname + location.search);
}

export function begin(): void {
  if (!current.value.isEmpty) open(Chat.begin(defaults.value));
}

/** Opens the conversation that the address names, as after a reload or the browser's own Back. */
export function openAddressed(): void {
  const id = location.hash.slice(1);
  const named = chats.value.find((chat) => chat.id === id);
  if (named) current.value = named;
  else if (chats.value.includes(current.value)) current.value = Chat.begin(defaults.value);
}

export function rename(chat: Chat, title: string): void {
  if (!title.trim()) return;
  chat.title.value = title.trim().slice(0, 500);
  keep(chat);
}

export function remove(gone: readonly Chat[]): void {
  if (gone.length === 0) return;
  for (const chat of gone) {
    chat.running.value?.abort();
    clearTimeout(waiting.get(chat.id));
    waiting.delete(chat.id);
    void store?.remove(chat.id);
  }
  chats.value = chats.value.filter((chat) => !gone.includes(chat));
  const here = gone.includes(current.value) ? current.value : null;
  if (here) open(Chat.begin(defaults.value));
  tell(gone.length === 1 ? "Conversation deleted." : `${gone.length} conversations deleted.`, {
    label: "Undo",
    run: () => {
      notice.value = null;
      for (const chat of gone) keep(chat);
      if (here) open(here);
    },
  });
}

/** Changes the settings of the open conversation, and those that the next one starts with. */
export function adjust(change: Partial<Settings>): void {
  const chat = current.value;
  chat.settings.value = { ...chat.settings.value, ...change };
  defaults.value = chat.settings.value;
  if (chats.value.includes(chat)) keep(chat);
}

export async function takeIn(file: File): Promise<void> {
  try {
    const read = await readFile(file);
    const fresh = newcomers(read, chats.value).map((conversation) => new Chat(conversation));
    for (const chat of fresh) keep(chat);
    if (fresh[0]) open(fresh[0]);
    tell(fresh.length === 1 ? "1 conversation imported." : `${fresh.length} conversations imported.`);
  } catch (error) {
    tell((error as Error).message);
  }
}

effect(() => {
  const title = current.value.title.value;
  document.title = title ? `${title} · ossia` : "ossia";
});
