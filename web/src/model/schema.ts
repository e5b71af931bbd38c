// What a conversation is: the one description that types, the browser's database and imported files are all held to.

import * as v from "valibot";

const count = v.pipe(v.number(), v.integer(), v.minValue(0));
const milliseconds = v.pipe(v.number(), v.minValue(0));
const id = v.pipe(v.string(), v.minLength(1), v.maxLength(64));

export const EFFORTS = ["low", "medium", "high"] as const;
export const Effort = v.picklist(EFFORTS);
export type Effort = v.InferOutput<typeof Effort>;

/** null leaves a value to the server. */
export const Settings = v.object({
  model: v.string(),
  effort: Effort,
  system: v.string(),
  temperature: v.nullable(v.pipe(v.number(), v.minValue(0), v.maxValue(2))),
  topP: v.nullable(v.pipe(v.number(), v.gtValue(0), v.maxValue(1))),
  maxTokens: v.nullable(v.pipe(v.number(), v.safeInteger(), v.minValue(1))),
  seed: v.nullable(v.pipe(v.number(), v.safeInteger(), v.minValue(0))),
  tools: v.string(),
});
export type Settings = v.InferOutput<typeof Settings>;

export const DEFAULTS: Settings = {
  model: "",
  effort: "medium",
  system: "",
  temperature: null,
  topP: null,
  maxTokens: null,
  seed: null,
  tools: "",
};

export const Usage = v.object({ prompt: count, cached: count, completion: count, reasoning: count });
export type Usage = v.InferOutput<typeof Usage>;

export const Call = v.object({ id: v.string(), name: v.string(), arguments: v.string() });
export type Call = v.InferOutput<typeof Call>;

const User = v.object({ role: v.literal("user"), text: v.string() });

/** What the user gave back for an answer's calls, one text for each, in their order. */
const Results = v.object({ role: v.literal("results"), texts: v.array(v.string()) });

const Answer = v.object({
  role: v.literal("answer"),
  model: v.string(),
  effort: Effort,
  reasoning: v.string(),
  text: v.string(),
  calls: v.array(Call),
  state: v.picklist(["running", "done", "length", "stopped", "failed"]),
  error: v.nullable(v.string()),
  usage: v.nullable(Usage),
  /** Milliseconds: until the first token, spent in reasoning, and in all. */
  timing: v.object({ first: v.nullable(milliseconds), reasoning: milliseconds, total: milliseconds }),
});
export type Answer = v.InferOutput<typeof Answer>;

export const Message = v.variant("role", [User, Results, Answer]);
export type Message = v.InferOutput<typeof Message>;

/** Entries form a tree: children of one parent are versions of the same turn, oldest first. */
const Entry = v.object({ id, parent: v.nullable(id), message: Message });

export const Conversation = v.pipe(
  v.object({
    id,
    title: v.pipe(v.string(), v.maxLength(500)),
    created: milliseconds,
    updated: milliseconds,
    settings: Settings,
    entries: v.array(Entry),
    /** The ids of the version shown at each place where there are several. */
    shown: v.array(id),
  }),
  v.check(({ entries }) => {
    const seen = new Set<string>();
    return entries.every((entry) => {
      const sound = !seen.has(entry.id) && (entry.parent === null || seen.has(entry.parent));
      seen.add(entry.id);
      return sound;
    });
  }, "an entry stands before its parent or twice"),
);
export type Conversation = v.InferOutput<typeof Conversation>;

export const ConversationFile = v.object({
  format: v.literal("ossia-conversations"),
  version: v.literal(1),
  conversations: v.array(Conversation),
});

/** Where and why a value does not fit, in one line. */
export function complaint(issues: readonly [v.BaseIssue<unknown>, ...v.BaseIssue<unknown>[]]): string {
  const [issue] = issues;
  const where = v.getDotPath(issue);
  return where ? `${where}: ${issue.message}` : issue.message;
}
