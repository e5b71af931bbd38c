// Having the model write: a new answer, another version of one, an edited question, results of calls.

import { type AnswerEntry, type Chat, type Entry, newId } from "../model/chat";
import type { Answer, Call } from "../model/schema";
import { readTools } from "../model/tools";
import { complete, type Piece } from "../wire/client";
import { ServerError } from "../wire/errors";
import { request } from "../wire/request";
import { adjusting, announcement, askingKey, keep, loadModels, model, models, open, tell } from "./app";
import { apiKey } from "./prefs";

/** Milliseconds between two redrawings of a growing answer. A timer, since frames stop in a hidden tab. */
const REDRAW = 33;

export function send(chat: Chat, text: string): void {
  if (!text.trim() || !sound(chat)) return;
  chat.draft.value = "";
  const { id } = chat.add(chat.path.value.at(-1)?.id ?? null, { role: "user", text });
  void answer(chat, id);
}

export function sendEdited(chat: Chat, entry: Entry, text: string): void {
  if (!text.trim() || !sound(chat)) return;
  chat.editing.value = null;
  const { id } = chat.add(entry.parent, { role: "user", text });
  void answer(chat, id);
}

export function giveResults(chat: Chat, entry: AnswerEntry, texts: readonly string[]): void {
  if (!sound(chat)) return;
  const { id } = chat.add(entry.id, { role: "results", texts: [...texts] });
  void answer(chat, id);
}

/** Another version of an answer; one that failed before it said anything is replaced. */
export function again(chat: Chat, entry: AnswerEntry): void {
  if (!sound(chat)) return;
  const { state, text, reasoning, calls } = entry.message.value;
  if (state === "failed" && !text && !reasoning && calls.length === 0) chat.drop(entry.id);
  void answer(chat, entry.parent);
}

export function stop(chat: Chat): void {
  chat.running.value?.abort();
}

/** May an answer be asked for now? If not, says why. */
function sound(chat: Chat): boolean {
  if (chat.running.value) return false;
  if (readTools(chat.settings.value.tools).error !== null) {
    tell("The tool definitions are not valid yet.", { label: "Mend them", run: () => (adjusting.value = true) });
    return false;
  }
  return true;
}

async function answer(chat: Chat, parent: string | null): Promise<void> {
  const controller = new AbortController();
  chat.running.value = controller;
  const line = chat.lineage(parent);
  const { effort, model: wanted } = chat.settings.value;
  const { message } = chat.add<Answer>(parent, {
    role: "answer",
    model: wanted,
    effort,
    reasoning: "",
    text: "",
    calls: [],
    state: "running",
    error: null,
    usage: null,
    timing: { first: null, reasoning: 0, total: 0 },
  });
  keep(chat);
  open(chat);
  announcement.value = "The model is thinking.";
  const growing = new Growing(message.value);
  const draw = () => {
    message.value = growing.answer();
    keep(chat);
  };
  let timer: ReturnType<typeof setTimeout> | undefined;
  try {
    if (models.value.length === 0) await loadModels();
    if (model.value) growing.model = model.value.id;
    const tools = readTools(chat.settings.value.tools).tools ?? [];
    const body = request(line, { ...chat.settings.value, model: growing.model }, tools);
    growing.start();
    for await (const piece of complete(body, apiKey(), controller.signal)) {
      growing.take(piece);
      timer ??= setTimeout(() => {
        timer = undefined;
        draw();
      }, REDRAW);
    }
    growing.end("done");
  } catch (error) {
    if (controller.signal.aborted) growing.end("stopped");
    else {
      growing.end("failed", error instanceof ServerError ? error.message : "Something went wrong on this page.");
      if (error instanceof ServerError && error.wantsKey) askingKey.value = true;
      if (!(error instanceof ServerError)) console.error(error);
    }
  } finally {
    clearTimeout(timer);
    chat.running.value = null;
    chat.touch();
    draw();
    announcement.value = spoken(message.value);
  }
}

function spoken({ state, error, text, calls }: Answer): string {
  if (state === "failed") return error ?? "";
  if (state === "stopped") return "Stopped.";
  if (calls.length > 0) return `The model calls ${calls.map(({ name }) => name).join(", ")}.`;
  return `The answer: ${text.slice(0, 1000)}`;
}

/** An answer in the making, with its clocks. */
class Growing {
  model: string;
  readonly #from: Answer;
  #reasoning = "";
  #text = "";
  #calls: Call[] = [];
  #usage: Answer["usage"] = null;
  #state: Answer["state"] = "running";
  #error: string | null = null;
  #cut = false;
  #started = performance.now();
  #first: number | null = null;
  #reasoned = 0;
  #reasoningSince: number | null = null;
  #total = 0;

  constructor(from: Answer) {
    this.#from = from;
    this.model = from.model;
  }

  start(): void {
    this.#started = performance.now();
  }

  take(piece: Piece): void {
    const now = performance.now();
    switch (piece.kind) {
      case "reasoning":
        this.#reasoning += piece.text;
        this.#reasoningSince ??= now;
        break;
      case "text":
        this.#text += piece.text;
        this.#stopReasoning(now);
        break;
      case "call": {
        this.#stopReasoning(now);
        const call = (this.#calls[piece.index] ??= { id: "", name: "", arguments: "" });
        call.id ||= piece.id;
        call.name += piece.name;
        call.arguments += piece.arguments;
        break;
      }
      case "usage":
        this.#usage = piece.usage;
        return;
      case "finish":
        this.#stopReasoning(now);
        this.#cut = piece.reason === "length";
    }
    this.#first ??= now - this.#started;
    this.#total = now - this.#started;
  }

  end(state: "done" | "stopped" | "failed", error: string | null = null): void {
    this.#stopReasoning(performance.now());
    this.#state = state === "done" && this.#cut ? "length" : state;
    this.#error = error;
    for (const call of this.#calls) if (call) call.id ||= `call_${newId()}`;
  }

  answer(): Answer {
    const running = this.#reasoningSince === null ? 0 : performance.now() - this.#reasoningSince;
    return {
      ...this.#from,
      model: this.model,
      reasoning: this.#reasoning,
      text: this.#text,
      calls: this.#calls.filter(Boolean).map((call) => ({ ...call })),
      state: this.#state,
      error: this.#error,
      usage: this.#usage,
      timing: { first: this.#first, reasoning: this.#reasoned + running, total: this.#total },
    };
  }

  #stopReasoning(now: number): void {
    if (this.#reasoningSince !== null) this.#reasoned += now - this.#reasoningSince;
    this.#reasoningSince = null;
  }
}
