// The server's API: its models, and a chat completion as a stream of what is new.

import { createParser } from "eventsource-parser";
import * as v from "valibot";
import type { Usage } from "../model/schema";
import { brokenOff, ended, reason, refused, ServerError, unreachable } from "./errors";

export interface Model {
  readonly id: string;
  /** How many tokens a conversation may have, if the server says so. */
  readonly context: number | null;
}

export type Piece =
  | { kind: "reasoning" | "text"; text: string }
  | { kind: "call"; index: number; id: string; name: string; arguments: string }
  | { kind: "usage"; usage: Usage }
  | { kind: "finish"; reason: string };

const ModelList = v.object({
  data: v.array(v.object({ id: v.string(), max_model_len: v.nullish(v.number()) })),
});

const count = v.fallback(v.number(), 0);
const Chunk = v.object({
  choices: v.optional(
    v.array(
      v.object({
        delta: v.optional(
          v.object({
            content: v.nullish(v.string()),
            reasoning: v.nullish(v.string()),
            reasoning_content: v.nullish(v.string()),
            refusal: v.nullish(v.string()),
            tool_calls: v.nullish(
              v.array(
                v.object({
                  index: v.number(),
                  id: v.nullish(v.string()),
                  function: v.optional(v.object({ name: v.nullish(v.string()), arguments: v.nullish(v.string()) })),
                }),
              ),
            ),
          }),
        ),
        finish_reason: v.nullish(v.string()),
      }),
    ),
  ),
  usage: v.nullish(
    v.object({
      prompt_tokens: count,
      completion_tokens: count,
      prompt_tokens_details: v.nullish(v.object({ cached_tokens: v.nullish(count) })),
      completion_tokens_details: v.nullish(v.object({ reasoning_tokens: v.nullish(count) })),
    }),
  ),
});

/** An address beside the page, wherever that is mounted. */
const address = (path: string) => new URL(path, document.baseURI);

async function ask(path: string, key: string, init: RequestInit = {}): Promise<Response> {
  const headers = new Headers(init.headers);
  if (key) headers.set("Authorization", `Bearer ${key}`);
  let response: Response;
  try {
    response = await fetch(address(path), { ...init, headers });
  } catch (error) {
    if (init.signal?.aborted) throw error;
    throw unreachable();
  }
  if (!response.ok) throw await refused(response);
  return response;
}

export async function models(key: string): Promise<readonly Model[]> {
  const response = await ask("v1/models", key);
  const read = v.safeParse(ModelList, await response.json().catch(() => null));
  if (!read.success) throw new ServerError("The server's list of models cannot be read.", null);
  return read.output.data.map(({ id, max_model_len }) => ({ id, context: max_model_len ?? null }));
}

/**
 * Asks for a chat completion and yields its pieces as they come.
 * Throws ServerError, or the signal's AbortError when it is aborted; the stream must end with its [DONE].
 */
export async function* complete(request: object, key: string, signal: AbortSignal): AsyncGenerator<Piece> {
  const response = await ask("v1/chat/completions", key, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(request),
    signal,
  });
  if (!response.body) throw brokenOff();
  // Read by hand: a pipe of streams that breaks drops what it still holds.
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  let events: string[] = [];
  const parser = createParser({ onEvent: ({ data }) => events.push(data) });
  try {
    for (;;) {
      const { done, value } = await reader.read().catch((error: unknown) => {
        if (signal.aborted) throw error;
        throw brokenOff();
      });
      if (done) throw brokenOff();
      parser.feed(decoder.decode(value, { stream: true }));
      for (const data of events) {
        if (data === "[DONE]") return;
        yield* pieces(data);
      }
      events = [];
    }
  } finally {
    // Ends the request when the reader of this stream has had enough; one that has broken has nothing to cancel.
    await reader.cancel().catch(() => undefined);
  }
}

function* pieces(data: string): Generator<Piece> {
  let parsed: unknown;
  try {
    parsed = JSON.parse(data);
  } catch {
    throw new ServerError("The server sent something that cannot be read.", null);
  }
  const message = reason(parsed);
  if (message) throw new ServerError(`The server failed: ${ended(message)}`, null);
  const read = v.safeParse(Chunk, parsed);
  if (!read.success) throw new ServerError("The server sent something that cannot be read.", null);
  const choice = read.output.choices?.[0];
  const delta = choice?.delta;
  const reasoning = delta?.reasoning ?? delta?.reasoning_content;
  const text = delta?.content ?? delta?.refusal;
  if (reasoning) yield { kind: "reasoning", text: reasoning };
  if (text) yield { kind: "text", text };
  for (const { index, id, function: called } of delta?.tool_calls ?? []) {
    yield { kind: "call", index, id: id ?? "", name: called?.name ?? "", arguments: called?.arguments ?? "" };
  }
  if (choice?.finish_reason) yield { kind: "finish", reason: choice.finish_reason };
  const usage = read.output.usage;
  if (usage) {
    yield {
      kind: "usage",
      usage: {
        prompt: usage.prompt_tokens,
        cached: usage.prompt_tokens_details?.cached_tokens ?? 0,
        completion: usage.completion_tokens,
        reasoning: usage.completion_tokens_details?.reasoning_tokens ?? 0,
      },
    };
  }
}
