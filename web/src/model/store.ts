// Conversations in the browser's own database, one record each, so that tabs do not overwrite each other's.

import { type DBSchema, type IDBPDatabase, openDB } from "idb";
import * as v from "valibot";
import { Conversation } from "./schema";
import { settled } from "./transfer";

interface Schema extends DBSchema {
  conversations: { key: string; value: Conversation };
}

export type Change = { kind: "saved" | "removed"; id: string };

export class Store {
  readonly #database: IDBPDatabase<Schema>;
  readonly #channel = new BroadcastChannel("ossia");

  private constructor(database: IDBPDatabase<Schema>) {
    this.#database = database;
  }

  /** Rejects where the browser keeps nothing for this page. */
  static async open(): Promise<Store> {
    return new Store(
      await openDB<Schema>("ossia", 1, {
        upgrade: (database) => void database.createObjectStore("conversations", { keyPath: "id" }),
      }),
    );
  }

  /** All conversations that can be read, the latest first; a record that cannot is left where it is. */
  async all(): Promise<readonly Conversation[]> {
    const records = await this.#database.getAll("conversations");
    return records
      .flatMap((record) => {
        const read = v.safeParse(Conversation, record);
        return read.success ? [settled(read.output)] : [];
      })
      .sort((a, b) => b.updated - a.updated);
  }

  async get(id: string): Promise<Conversation | undefined> {
    const read = v.safeParse(Conversation, await this.#database.get("conversations", id));
    return read.success ? read.output : undefined;
  }

  async save(conversation: Conversation): Promise<void> {
    const transaction = this.#database.transaction("conversations", "readwrite");
    const put = transaction.store.put(conversation);
    // At once, not when the page hears that it was put: the page may be going away.
    transaction.commit();
    await Promise.all([put, transaction.done]);
    this.#tell({ kind: "saved", id: conversation.id });
  }

  async remove(id: string): Promise<void> {
    await this.#database.delete("conversations", id);
    this.#tell({ kind: "removed", id });
  }

  /** Calls `listener` when another tab has changed something. */
  listen(listener: (change: Change) => void): void {
    this.#channel.onmessage = (event: MessageEvent<Change>) => listener(event.data);
  }

  #tell(change: Change): void {
    this.#channel.postMessage(change);
  }
}
