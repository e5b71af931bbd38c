import { EXAMPLE_TOOLS } from "../model/tools";
import { adjust, current, isDemo, models } from "../state/app";
import { send } from "../state/run";

interface Example {
  readonly text: string;
  readonly note?: string;
  readonly tools?: string;
}

/** What the bundled model has learnt to do. */
const SMALL: readonly Example[] = [
  { text: "What is 4213 + 2789?" },
  { text: "Divide 812 by 7." },
  { text: "What is 36 * 47?" },
  { text: "What is the weather in Oslo?", note: "with a tool to call", tools: EXAMPLE_TOOLS },
];

const LARGE: readonly Example[] = [
  { text: "Explain the fast Fourier transform with a worked example of four points." },
  { text: "Write a Python function that merges overlapping intervals, and test it." },
  { text: "Prove that the square root of 2 is irrational." },
  { text: "What is the weather in Oslo?", note: "with a tool to call", tools: EXAMPLE_TOOLS },
];

export function Welcome() {
  const chat = current.value;
  const begin = ({ text, tools }: Example) => {
    if (tools && !chat.settings.value.tools.trim()) adjust({ tools });
    send(chat, text);
  };
  return (
    <section class="welcome">
      <h1>{isDemo.value ? "What shall we work out?" : "Where shall we begin?"}</h1>
      {isDemo.value ? (
        <p>
          This is the bundled demo: a tiny model, trained on arithmetic, small puzzles and calls of tools. It knows nothing
          of the world, and even its sums go wrong now and then.
        </p>
      ) : (
        <p>Conversations are kept in this browser only.</p>
      )}
      <ul>
        {(isDemo.value ? SMALL : LARGE).map((example) => (
          <li key={example.text}>
            <button type="button" disabled={models.value.length === 0} onClick={() => begin(example)}>
              {example.text} {example.note && <small>{example.note}</small>}
            </button>
          </li>
        ))}
      </ul>
    </section>
  );
}
