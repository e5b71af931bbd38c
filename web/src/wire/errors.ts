// What went wrong, as a sentence for the person at the page.

export class ServerError extends Error {
  constructor(
    message: string,
    /** The HTTP status, or null where no answer came, or where it came in the middle of a stream. */
    readonly status: number | null,
  ) {
    super(message);
  }

  get wantsKey(): boolean {
    return this.status === 401;
  }
}

export const ASKS_FOR_KEY = "The server asks for an API key.";

export const unreachable = () => new ServerError("The server cannot be reached. Is it still running?", null);

export const brokenOff = () => new ServerError("The connection broke off before the answer was complete.", null);

/** An answer with an error's status. Its body should be {"error": {"message"}}, but a proxy may have written it. */
export async function refused(response: Response): Promise<ServerError> {
  const message = reason(await response.json().catch(() => null));
  return new ServerError(sentence(response.status, message, response.headers.get("retry-after")), response.status);
}

/** The message of an error object of the API, if it is one. */
export function reason(body: unknown): string {
  const error = (body as { error?: { message?: unknown } } | null)?.error;
  return typeof error?.message === "string" ? error.message.trim() : "";
}

/** With a full stop, if nothing ends it yet. */
export const ended = (text: string) => (/[.!?]$/.test(text) ? text : `${text}.`);

function sentence(status: number, message: string, retryAfter: string | null): string {
  const detail = message ? `: ${ended(message)}` : ".";
  if (status === 401) return ASKS_FOR_KEY;
  if (status === 429 || status === 503) {
    const seconds = Number(retryAfter);
    return `The server is busy${detail}${seconds > 0 ? ` Try again in ${seconds} s.` : ""}`;
  }
  if (status >= 500) return `The server failed (${status})${detail}`;
  return `The server refused this (${status})${detail}`;
}
