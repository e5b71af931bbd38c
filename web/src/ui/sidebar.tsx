// The conversations: found, opened, renamed, deleted, taken out and in.

import { signal } from "@preact/signals";
import { useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";
import type { Chat } from "../model/chat";
import { download } from "../model/transfer";
import { askingKey, begin, chats, current, helping, open, ready, remove, rename, takeIn, tell } from "../state/app";
import { sidebar, theme } from "../state/prefs";
import { Icon } from "./icons";
import { Menu } from "./menu";

/** On a narrow screen the sidebar lies over the conversation, and is away until it is asked for. */
export const narrow = matchMedia("(max-width: 50rem)");
export const drawn = signal(false);

export function toggleSidebar(): void {
  if (narrow.matches) drawn.value = !drawn.value;
  else sidebar.value = !sidebar.value;
}

const words = signal("");
const renaming = signal<Chat | null>(null);

export function Sidebar() {
  const chosen = useRef<HTMLInputElement>(null);
  const found = words.value.trim().toLowerCase();
  const list = useMemo(() => {
    const matching = found ? chats.value.filter((chat) => chat.mentions(found)) : chats.value;
    return groups([...matching].sort((a, b) => b.updated.value - a.updated.value));
  }, [found, chats.value, current.value, current.value.updated.value]);
  return (
    <nav class={drawn.value ? "sidebar drawn" : "sidebar"} aria-label="Conversations">
      <header>
        <i class="wordmark">ossia</i>
        <button type="button" class="quiet" aria-label="Hide the sidebar" title="Hide the sidebar" onClick={toggleSidebar}>
          <Icon name="panel" />
        </button>
      </header>
      <button
        type="button"
        class="new"
        onClick={() => {
          begin();
          drawn.value = false;
        }}
      >
        <Icon name="pen" />
        New chat
        <kbd>{/Mac|iPhone|iPad/.test(navigator.platform) ? "⌘K" : "Ctrl K"}</kbd>
      </button>
      <label class="search">
        <Icon name="search" />
        <span class="unseen">Search conversations</span>
        <input
          type="search"
          placeholder="Search"
          value={words.value}
          onInput={({ currentTarget }) => (words.value = currentTarget.value)}
          onKeyDown={(event) => {
            if (event.key !== "Escape" || !words.value) return;
            event.stopPropagation();
            words.value = "";
          }}
        />
      </label>
      <div class="list">
        {list.map(([name, group]) => (
          <section key={name} aria-label={name}>
            <h2>{name}</h2>
            <ul>
              {group.map((chat) => (
                <Item key={chat.id} chat={chat} />
              ))}
            </ul>
          </section>
        ))}
        {list.length === 0 && ready.value && <p>{found ? "Nothing found." : "No conversations yet."}</p>}
      </div>
      <footer>
        <Theme />
        <input
          ref={chosen}
          type="file"
          accept="application/json,.json"
          class="unseen"
          tabIndex={-1}
          aria-label="File of conversations"
          onChange={({ currentTarget }) => {
            const file = currentTarget.files?.[0];
            if (file) void takeIn(file);
            currentTarget.value = "";
          }}
        />
        <Menu
          label="More"
          upwards
          items={[
            { label: "Import…", run: () => chosen.current?.click() },
            { label: "Export all", run: exportAll },
            { label: "API key…", run: () => (askingKey.value = true) },
            { label: "Keyboard", run: () => (helping.value = true) },
            { label: "Delete all", run: () => remove(chats.value), grave: true },
          ]}
        />
      </footer>
    </nav>
  );
}

function exportAll(): void {
  if (chats.value.length > 0) download(chats.value, `ossia ${new Date().toISOString().slice(0, 10)}`);
  else tell("There is no conversation to export yet.");
}

function groups(sorted: readonly Chat[]): [string, Chat[]][] {
  const midnight = new Date().setHours(0, 0, 0, 0);
  const day = 86_400_000;
  const found = new Map<string, Chat[]>();
  for (const chat of sorted) {
    const age = midnight - chat.updated.peek();
    const name = age <= 0 ? "Today" : age <= day ? "Yesterday" : age <= 7 * day ? "Last week" : "Earlier";
    found.set(name, [...(found.get(name) ?? []), chat]);
  }
  return [...found];
}

function Item({ chat }: { chat: Chat }) {
  const title = chat.title.value || "Untitled";
  if (renaming.value === chat) return <Renaming chat={chat} />;
  return (
    <li class={chat === current.value ? "here" : undefined}>
      <a
        href={`#${chat.id}`}
        aria-current={chat === current.value ? "page" : undefined}
        title={title}
        onClick={(event) => {
          if (event.ctrlKey || event.metaKey || event.shiftKey) return;
          event.preventDefault();
          open(chat);
          drawn.value = false;
        }}
        onDblClick={() => (renaming.value = chat)}
      >
        {chat.running.value && <span class="pulse" aria-label="Answering" />}
        {title}
      </a>
      <Menu
        label={`Actions for ${title}`}
        items={[
          { label: "Rename", run: () => (renaming.value = chat) },
          { label: "Export", run: () => download([chat], title) },
          { label: "Delete", run: () => remove([chat]), grave: true },
        ]}
      />
    </li>
  );
}

function Renaming({ chat }: { chat: Chat }) {
  const [title, setTitle] = useState(chat.title.value);
  const field = useRef<HTMLInputElement>(null);
  useLayoutEffect(() => field.current?.select(), []);
  const done = () => {
    if (renaming.value !== chat) return;
    rename(chat, title);
    renaming.value = null;
  };
  return (
    <li class="here">
      <input
        ref={field}
        aria-label="Title"
        value={title}
        maxLength={500}
        onInput={({ currentTarget }) => setTitle(currentTarget.value)}
        onBlur={done}
        onKeyDown={(event) => {
          if (event.key === "Enter") done();
          if (event.key !== "Escape") return;
          event.stopPropagation();
          renaming.value = null;
        }}
      />
    </li>
  );
}

function Theme() {
  return (
    <fieldset class="segments themes">
      <legend class="unseen">Theme</legend>
      {(["system", "light", "dark"] as const).map((name) => (
        <label key={name} title={name === "system" ? "As the system" : name === "light" ? "Light" : "Dark"}>
          <input
            type="radio"
            name="theme"
            value={name}
            aria-label={name === "system" ? "As the system" : name}
            checked={theme.value === name}
            onChange={() => (theme.value = name)}
          />
          <span>
            <Icon name={name} />
          </span>
        </label>
      ))}
    </fieldset>
  );
}
