// What the model is told and how it is sampled, for the open conversation and those begun after it.

import { useLayoutEffect, useRef, useState } from "preact/hooks";
import { DEFAULTS, type Settings } from "../model/schema";
import { EXAMPLE_TOOLS, readTools } from "../model/tools";
import { adjust, adjusting, current } from "../state/app";
import { Icon } from "./icons";

interface Field {
  readonly name: "temperature" | "topP" | "maxTokens" | "seed";
  readonly label: string;
  readonly wanted: string;
  readonly step: string;
  readonly fits: (value: number) => boolean;
}

const FIELDS: readonly Field[] = [
  { name: "temperature", label: "Temperature", wanted: "0 to 2", step: "0.1", fits: (value) => value >= 0 && value <= 2 },
  { name: "topP", label: "Top-p", wanted: "above 0, up to 1", step: "0.05", fits: (value) => value > 0 && value <= 1 },
  {
    name: "maxTokens",
    label: "Token limit",
    wanted: "a whole number from 1",
    step: "1",
    fits: (value) => Number.isSafeInteger(value) && value >= 1,
  },
  {
    name: "seed",
    label: "Seed",
    wanted: "a whole number from 0",
    step: "1",
    fits: (value) => Number.isSafeInteger(value) && value >= 0,
  },
];

export function SettingsPanel() {
  const chat = current.value;
  const settings = chat.settings.value;
  const panel = useRef<HTMLElement>(null);
  const [resets, setResets] = useState(0);
  const close = () => {
    adjusting.value = false;
    document.querySelector<HTMLElement>("#settings-toggle")?.focus();
  };
  useLayoutEffect(() => panel.current?.querySelector<HTMLElement>("textarea")?.focus(), []);
  return (
    <aside
      class="settings"
      ref={panel}
      aria-label="Settings"
      onKeyDown={(event) => {
        if (event.key !== "Escape") return;
        event.stopPropagation();
        close();
      }}
    >
      <header>
        <h2>Settings</h2>
        <button type="button" class="quiet" aria-label="Close settings" title="Close" onClick={close}>
          <Icon name="close" />
        </button>
      </header>
      <label>
        <span>System prompt</span>
        <textarea
          rows={5}
          placeholder="What the model is told before the conversation"
          value={settings.system}
          onInput={({ currentTarget }) => adjust({ system: currentTarget.value })}
        />
      </label>
      <section class="numbers" aria-label="Sampling">
        {FIELDS.map((field) => (
          <NumberField key={`${chat.id} ${resets} ${field.name}`} field={field} value={settings[field.name]} />
        ))}
      </section>
      <p class="remark">What is left empty is the server's to decide. With a seed, the same question gets the same answer.</p>
      <ToolsField text={settings.tools} />
      <button
        type="button"
        class="plain"
        onClick={() => {
          const { model, effort } = settings;
          adjust({ ...DEFAULTS, model, effort } satisfies Settings);
          setResets(resets + 1);
        }}
      >
        Reset these settings
      </button>
    </aside>
  );
}

function NumberField({ field, value }: { field: Field; value: number | null }) {
  const { name, label, wanted, step, fits } = field;
  const [wrong, setWrong] = useState(false);
  const input = useRef<HTMLInputElement>(null);
  useLayoutEffect(() => {
    // The field follows the setting, but leaves alone what is being typed ("1." is 1 already).
    const element = input.current;
    if (!element || (element.value !== "" && Number(element.value) === value)) return;
    if (value === null && wrong) return;
    element.value = value === null ? "" : String(value);
  }, [value]);
  return (
    <label>
      <span>{label}</span>
      <input
        ref={input}
        type="number"
        inputMode="decimal"
        step={step}
        placeholder="default"
        aria-invalid={wrong}
        aria-describedby={wrong ? `wrong-${name}` : undefined}
        onInput={({ currentTarget: { value: text, validity } }) => {
          const empty = text === "" && !validity.badInput;
          const sound = empty || (text !== "" && fits(Number(text)));
          setWrong(!sound);
          adjust({ [name]: sound && !empty ? Number(text) : null });
        }}
      />
      {wrong && (
        <small id={`wrong-${name}`} class="grave">
          {wanted}
        </small>
      )}
    </label>
  );
}

function ToolsField({ text }: { text: string }) {
  const { tools, error } = readTools(text);
  return (
    <div class="tools">
      <label>
        <span>Tools</span>
        <textarea
          rows={10}
          class="mono"
          spellcheck={false}
          placeholder={'[{"name": …, "description": …, "parameters": …}]'}
          value={text}
          aria-invalid={error !== null}
          aria-describedby="tools-state"
          onInput={({ currentTarget }) => adjust({ tools: currentTarget.value })}
        />
      </label>
      <p id="tools-state" class={error ? "remark grave" : "remark"} role="status">
        {error ??
          (tools.length === 0
            ? "Functions that the model may call, as JSON. You give their results by hand."
            : tools.map((tool) => tool.function.name).join(", "))}
      </p>
      {!text.trim() && (
        <button type="button" class="plain" onClick={() => adjust({ tools: EXAMPLE_TOOLS })}>
          Put in an example
        </button>
      )}
    </div>
  );
}
