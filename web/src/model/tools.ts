// Tool definitions as the user writes them: JSON, in either spelling of the API, checked before anything is sent.

export interface Tool {
  type: "function";
  function: { name: string; description?: string; parameters?: Record<string, unknown>; strict?: boolean };
}

export type Tools = { tools: readonly Tool[]; error: null } | { tools: null; error: string };

const NAME = /^[A-Za-z0-9_-]{1,64}$/;
const FIELDS = new Set(["name", "description", "parameters", "strict"]);

const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === "object" && value !== null && !Array.isArray(value);

export const EXAMPLE_TOOLS = `[
  {
    "name": "get_weather",
    "description": "Gets the weather.",
    "parameters": {
      "type": "object",
      "properties": {
        "city": { "type": "string", "description": "The city." }
      },
      "required": ["city"]
    }
  }
]
`;

/** Reads a list of tools; nothing but space is no tools. The error says which tool and what is wrong with it. */
export function readTools(text: string): Tools {
  if (!text.trim()) return { tools: [], error: null };
  let parsed: unknown;
  try {
    parsed = JSON.parse(text);
  } catch (error) {
    return { tools: null, error: `Not JSON yet: ${(error as Error).message}.` };
  }
  const list = isObject(parsed) ? [parsed] : parsed;
  if (!Array.isArray(list)) return { tools: null, error: "Give a list of tools: [ { … }, … ]." };
  const tools: Tool[] = [];
  for (const [index, item] of list.entries()) {
    const read = readTool(item, `Tool ${index + 1}`);
    if (typeof read === "string") return { tools: null, error: read };
    if (tools.some((tool) => tool.function.name === read.function.name)) {
      return { tools: null, error: `Tool ${index + 1}: there is a tool “${read.function.name}” already.` };
    }
    tools.push(read);
  }
  return { tools, error: null };
}

function readTool(item: unknown, where: string): Tool | string {
  if (!isObject(item)) return `${where} is not an object.`;
  if ("type" in item && item.type !== "function") return `${where}: “type” must be "function".`;
  const nested = "function" in item;
  const body = nested ? item.function : Object.fromEntries(Object.entries(item).filter(([key]) => key !== "type"));
  if (!isObject(body)) return `${where}: “function” must be an object.`;
  const strange = [
    ...Object.keys(body).filter((key) => !FIELDS.has(key)),
    ...(nested ? Object.keys(item).filter((key) => key !== "type" && key !== "function") : []),
  ][0];
  if (strange !== undefined) return `${where}: “${strange}” is not a field of a tool.`;
  const { name, description, parameters, strict } = body;
  if (typeof name !== "string") return `${where} has no “name”.`;
  if (!NAME.test(name)) return `${where}: a name is 1 to 64 letters, digits, “_” or “-”.`;
  if (description !== undefined && typeof description !== "string") return `${where}: “description” must be a text.`;
  if (parameters !== undefined && !isObject(parameters)) return `${where}: “parameters” must be a JSON Schema object.`;
  if (parameters?.type !== undefined && parameters.type !== "object") {
    return `${where}: “parameters” must be of type "object".`;
  }
  if (strict !== undefined && typeof strict !== "boolean") return `${where}: “strict” must be true or false.`;
  return {
    type: "function",
    function: {
      name,
      ...(description !== undefined && { description }),
      ...(parameters !== undefined && { parameters }),
      ...(strict !== undefined && { strict }),
    },
  };
}
