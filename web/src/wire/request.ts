// A conversation as the body of a chat completion.

import type { Entry } from "../model/chat";
import type { Call, Settings } from "../model/schema";
import type { Tool } from "../model/tools";

/** `line` is what came before, from the first entry on. What is not set is left out, so that the server decides. */
export function request(line: readonly Entry[], settings: Settings, tools: readonly Tool[]): object {
  const { model, effort, system, temperature, topP, maxTokens, seed } = settings;
  return {
    model,
    messages: [...(system.trim() ? [{ role: "system", content: system }] : []), ...messages(line)],
    stream: true,
    stream_options: { include_usage: true },
    reasoning_effort: effort,
    ...(temperature !== null && { temperature }),
    ...(topP !== null && { top_p: topP }),
    ...(maxTokens !== null && { max_completion_tokens: maxTokens }),
    ...(seed !== null && { seed }),
    ...(tools.length > 0 && { tools }),
  };
}

function messages(line: readonly Entry[]): object[] {
  const written: object[] = [];
  let calls: readonly Call[] = [];
  for (const { message } of line) {
    const value = message.peek();
    switch (value.role) {
      case "user":
        written.push({ role: "user", content: value.text });
        break;
      case "results":
        written.push(
          ...value.texts.flatMap((content, index) => {
            const call = calls[index];
            return call ? [{ role: "tool", tool_call_id: call.id, content }] : [];
          }),
        );
        break;
      case "answer":
        // Calls of an answer that was cut off were never whole.
        calls = value.state === "done" ? value.calls : [];
        if (calls.length > 0) {
          written.push({
            role: "assistant",
            content: value.text || null,
            // While calls are open the model needs what it thought when it made them.
            ...(value.reasoning && { reasoning: value.reasoning }),
            tool_calls: calls.map((call) => ({
              id: call.id,
              type: "function",
              function: { name: call.name, arguments: call.arguments },
            })),
          });
        } else if (value.text) {
          written.push({ role: "assistant", content: value.text });
        }
    }
  }
  return written;
}
