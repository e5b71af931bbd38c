// Conversations as a file: written for the user to keep, read back with nothing taken on trust.

import * as v from "valibot";
import { type Chat, newId } from "./chat";
import { complaint, type Conversation, ConversationFile } from "./schema";

const LARGEST_FILE = 64 * 2 ** 20;

export function download(chats: readonly Chat[], name: string): void {
  const file: v.InferInput<typeof ConversationFile> = {
    format: "ossia-conversations",
    version: 1,
    conversations: chats.map((chat) => chat.toJSON()),
  };
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(file, null, 2)], { type: "application/json" }));
  link.download = `${name.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 60) || "conversation"}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** Reads an exported file. Throws an Error whose message says what is wrong with it. */
export async function readFile(file: File): Promise<readonly Conversation[]> {
  if (file.size > LARGEST_FILE) throw new Error(`${file.name} is larger than 64 MB.`);
  let parsed: unknown;
  try {
    parsed = JSON.parse(await file.text());
  } catch {
    throw new Error(`${file.name} is not JSON.`);
  }
  const read = v.safeParse(ConversationFile, parsed);
  if (!read.success) throw new Error(`${file.name} is not a file of exported conversations (${complaint(read.issues)}).`);
  return read.output.conversations.map(settled);
}

/** An answer that was being written when its page went away is written no more. */
export function settled(conversation: Conversation): Conversation {
  return {
    ...conversation,
    entries: conversation.entries.map((entry) =>
      entry.message.role === "answer" && entry.message.state === "running"
        ? { ...entry, message: { ...entry.message, state: "failed", error: "The page was closed before the answer was complete." } }
        : entry,
    ),
  };
}

/** Those of `read` that are not here yet; one that has the id of another but differs from it comes in beside it. */
export function newcomers(read: readonly Conversation[], here: readonly Chat[]): readonly Conversation[] {
  const known = new Map(here.map((chat) => [chat.id, JSON.stringify(settled(chat.toJSON()).entries)]));
  const coming: Conversation[] = [];
  for (const conversation of read) {
    const entries = JSON.stringify(conversation.entries);
    if (known.get(conversation.id) === entries) continue;
    const id = known.has(conversation.id) ? newId() : conversation.id;
    known.set(id, entries);
    coming.push({ ...conversation, id });
  }
  return coming;
}
