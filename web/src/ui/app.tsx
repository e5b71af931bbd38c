import { useEffect } from "preact/hooks";
import {
  adjust,
  adjusting,
  askingKey,
  begin,
  current,
  helping,
  loadModels,
  model,
  models,
  notice,
  outage,
} from "../state/app";
import { sidebar } from "../state/prefs";
import { stop } from "../state/run";
import { Composer } from "./composer";
import { HelpDialog, KeyDialog } from "./dialogs";
import { Icon } from "./icons";
import { SettingsPanel } from "./settings";
import { drawn, narrow, Sidebar, toggleSidebar } from "./sidebar";
import { Thread } from "./thread";

const isField = (target: EventTarget | null) =>
  target instanceof HTMLElement && target.matches("input:not([type=radio]), textarea, select");

function keys(event: KeyboardEvent): void {
  if (event.defaultPrevented || event.isComposing || document.querySelector("dialog[open]")) return;
  if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "k") {
    event.preventDefault();
    begin();
    document.querySelector<HTMLElement>("#message")?.focus();
  } else if (event.key === "Escape") {
    if (drawn.value) drawn.value = false;
    else stop(current.value);
  } else if (!isField(event.target) && !(event.ctrlKey || event.metaKey || event.altKey)) {
    if (event.key === "/") {
      event.preventDefault();
      document.querySelector<HTMLElement>("#message")?.focus();
    } else if (event.key === "?") helping.value = true;
  }
}

export function App() {
  useEffect(() => {
    document.addEventListener("keydown", keys);
    return () => document.removeEventListener("keydown", keys);
  }, []);
  const layout = ["app", sidebar.value && "with-sidebar", adjusting.value && "with-settings"].filter(Boolean).join(" ");
  return (
    <div class={layout}>
      <Sidebar />
      {drawn.value && <div class="scrim" onClick={() => (drawn.value = false)} />}
      <div class="stage" inert={drawn.value && narrow.matches}>
        <Header />
        {outage.value && (
          <div class="outage" role="alert">
            <p>{outage.value}</p>
            <button type="button" class="plain" onClick={() => void loadModels()}>
              Try again
            </button>
          </div>
        )}
        <Thread />
        <Composer />
      </div>
      {adjusting.value && <SettingsPanel />}
      {askingKey.value && <KeyDialog />}
      {helping.value && <HelpDialog />}
      {notice.value && (
        <div class="notice" role="status">
          {notice.value.text}
          {notice.value.action && (
            <button type="button" class="plain" onClick={notice.value.action.run}>
              {notice.value.action.label}
            </button>
          )}
        </div>
      )}
    </div>
  );
}

function Header() {
  return (
    <header class="head">
      <button
        type="button"
        class="quiet opener"
        aria-label="Show the sidebar"
        title="Show the sidebar"
        onClick={toggleSidebar}
      >
        <Icon name="panel" />
      </button>
      <button type="button" class="quiet opener" aria-label="New chat" title="New chat" onClick={begin}>
        <Icon name="pen" />
      </button>
      <ModelChoice />
      <button
        type="button"
        id="settings-toggle"
        class="quiet"
        aria-label="Settings"
        title="Settings"
        aria-expanded={adjusting.value}
        onClick={() => (adjusting.value = !adjusting.value)}
      >
        <Icon name="sliders" />
      </button>
    </header>
  );
}

function ModelChoice() {
  if (models.value.length < 2) return <span class="model">{model.value?.id}</span>;
  return (
    <label class="model">
      <span class="unseen">Model</span>
      <select value={model.value?.id} onChange={({ currentTarget }) => adjust({ model: currentTarget.value })}>
        {models.value.map(({ id }) => (
          <option key={id} value={id}>
            {id}
          </option>
        ))}
      </select>
    </label>
  );
}
