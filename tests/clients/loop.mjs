// One tool-calling loop to its end, as a user of the official clients would write it.
//
//     node loop.mjs LOOP BASE_URL API_KEY MODEL
//
// Prints one JSON line: the arguments of each call that was executed, the final answer, and what streamed.

import OpenAI from "openai";
import { ResponsesToolRunner } from "openai/helpers/responses-tool-runner";
import { Agent, OpenAIProvider, Runner, tool } from "@openai/agents";
import { z } from "zod";

const [loop, baseURL, apiKey, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0, timeout: 60_000 });

const QUESTION = "What is the weather in Paris?";
const RESULT = '{"status":"ready","value":17}';
const NAME = "get_weather";
const DESCRIPTION = "Get the weather.";
const PARAMETERS = {
  type: "object",
  properties: { city: { type: "string", description: "Name of the city." } },
  required: ["city"],
  additionalProperties: false,
};

const executed = [];
function getWeather({ city }) {
  executed.push({ city });
  return RESULT;
}

const LOOPS = {
  "chat": async () => {
    const runner = client.chat.completions.runTools(chatRequest());
    return { answer: await runner.finalContent(), usage: await runner.totalUsage() };
  },

  "chat-streamed": async () => {
    const kinds = new Set();
    let streamed = "";
    const runner = client.chat.completions
      .runTools({ ...chatRequest(), stream: true, stream_options: { include_usage: true } })
      .on("chunk", (chunk) => chunk.choices.forEach((choice) => Object.keys(choice.delta).forEach((k) => kinds.add(k))))
      .on("content", (delta) => (streamed += delta));
    return { answer: await runner.finalContent(), streamed, kinds: [...kinds], usage: await runner.totalUsage() };
  },

  "responses": async () => await responses(async (request) => await client.responses.create(request)),

  "responses-stored": async () => {
    // The server keeps the conversation: only what is new is sent.
    const first = await client.responses.create(responsesRequest({ input: QUESTION, store: true }));
    const input = outputs(first.output);
    const second = await client.responses.create(
      responsesRequest({ input, previous_response_id: first.id, store: true }),
    );
    const kept = await client.responses.retrieve(second.id);
    return { answer: kept.output_text, usage: second.usage };
  },

  "responses-streamed": async () => {
    const kinds = new Set();
    let streamed = "";
    const result = await responses(async (request) => {
      const stream = client.responses.stream(request);
      for await (const event of stream) {
        kinds.add(event.type);
        if (event.type === "response.output_text.delta") streamed += event.delta;
      }
      return await stream.finalResponse();
    });
    return { ...result, streamed, kinds: [...kinds] };
  },

  "responses-runner": async () => {
    const kinds = new Set();
    const functions = [{ tool: responsesTool(), execute: getWeather }];
    const runner = new ResponsesToolRunner({ functions });
    const request = responsesRequest({ input: [{ role: "user", content: QUESTION }] });
    delete request.tools;
    const options = { stream: true, onEvent: (event) => void kinds.add(event.type) };
    const response = await runner.run(client, request, options);
    return { answer: response.output_text, kinds: [...kinds], usage: response.usage };
  },

  "agents-chat": async () => await agent({ useResponses: false, stream: false }),
  "agents-chat-streamed": async () => await agent({ useResponses: false, stream: true }),
  "agents-responses": async () => await agent({ useResponses: true, stream: false }),
  "agents-responses-streamed": async () => await agent({ useResponses: true, stream: true }),
};

function chatRequest() {
  const fn = { name: NAME, description: DESCRIPTION, parameters: PARAMETERS, parse: JSON.parse, function: getWeather };
  return {
    model,
    messages: [{ role: "user", content: QUESTION }],
    tools: [{ type: "function", function: fn }],
    temperature: 0,
    reasoning_effort: "low",
    max_completion_tokens: 300,
  };
}

function responsesTool() {
  return { type: "function", name: NAME, description: DESCRIPTION, parameters: PARAMETERS, strict: true };
}

function responsesRequest(rest) {
  const reasoning = { effort: "low" };
  return { model, tools: [responsesTool()], temperature: 0, reasoning, max_output_tokens: 300, ...rest };
}

// The results of all calls among the items.
function outputs(items) {
  return items
    .filter((item) => item.type === "function_call")
    .map(({ call_id, arguments: text }) => ({
      type: "function_call_output",
      call_id,
      output: getWeather(JSON.parse(text)),
    }));
}

// The client keeps the conversation: every item goes back as it came.
async function responses(ask) {
  const input = [{ role: "user", content: QUESTION }];
  for (let turn = 0; turn < 4; turn++) {
    const response = await ask(responsesRequest({ input, store: false }));
    const results = outputs(response.output);
    if (results.length === 0) return { answer: response.output_text, usage: response.usage };
    input.push(...response.output, ...results);
  }
  throw new Error("the loop did not end in 4 turns");
}

async function agent({ useResponses, stream }) {
  const weather = tool({
    name: NAME,
    description: DESCRIPTION,
    parameters: z.object({ city: z.string().describe("Name of the city.") }),
    execute: getWeather,
  });
  const subject = new Agent({
    name: "Weather",
    instructions: "You are a helpful assistant.",
    model,
    modelSettings: { temperature: 0, maxTokens: 300, reasoning: { effort: "low" } },
    tools: [weather],
  });
  const runner = new Runner({
    modelProvider: new OpenAIProvider({ openAIClient: client, useResponses }),
    tracingDisabled: true,
  });
  if (!stream) {
    const result = await runner.run(subject, QUESTION, { maxTurns: 4 });
    return { answer: result.finalOutput, items: result.newItems.map((item) => item.type) };
  }
  const result = await runner.run(subject, QUESTION, { maxTurns: 4, stream: true });
  const kinds = new Set();
  let streamed = "";
  for await (const event of result) {
    kinds.add(event.type === "raw_model_stream_event" ? event.data.type : event.name ?? event.type);
    if (event.type === "raw_model_stream_event" && event.data.type === "output_text_delta") streamed += event.data.delta;
  }
  await result.completed;
  const items = result.newItems.map((item) => item.type);
  return { answer: result.finalOutput, streamed, items, kinds: [...kinds] };
}

if (!(loop in LOOPS)) {
  console.error(`no loop ${loop}: give one of ${Object.keys(LOOPS).join(", ")}`);
  process.exit(2);
}
const result = await LOOPS[loop]();
console.log(JSON.stringify({ loop, executed, ...result }));
