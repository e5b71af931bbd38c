"""What happens while an answer is generated, in text: the vocabulary that the bridge and the routes share.

Opened (Text | Mended)... Closed        once for each message of the turn
Done                                    once, at the end
"""

from dataclasses import dataclass
from typing import Literal

from ossia.harmony.messages import Message
from ossia.harmony.parse import MessageStart, Stop

FinishReason = Literal["stop", "tool_calls", "length", "cancelled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprob:
    """A token of the answer, or one that might have stood there, and its log-probability."""

    token: str
    """Its text; U+FFFD for bytes that are no whole character."""
    bytes: tuple[int, ...]
    logprob: float
    top: "tuple[TokenLogprob, ...]" = ()
    """The likeliest tokens at this place, best first, as many as were asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens and seconds of one generation."""

    prompt_tokens: int
    cached_tokens: int
    """Those of the prompt that were in the cache already."""
    completion_tokens: int
    """All that was generated up to the end: headers, reasoning, answer, stop token."""
    reasoning_tokens: int
    """Those among them that are content of the analysis channel."""
    first_token_seconds: float = 0.0
    """From the hand-over to the engine to the first token, waiting included."""
    total_seconds: float = 0.0
    """From the hand-over to the last token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A message's header is known; its text follows."""

    message: MessageStart


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """More of the open message, or of a raw prompt's continuation (channel None): whole characters.

    The text may be empty where only logprobs are left to tell.
    """

    text: str
    channel: str | None = None
    recipient: str | None = None
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Closed:
    """A message is complete. stop: "cut" where a stop string, a limit or the next message ended it."""

    message: Message
    stop: Stop


@dataclass(frozen=True, slots=True, kw_only=True)
class Mended:
    """Something in what the model wrote was mended or forced; one line."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """The generation ended. stop_string: which one ended it, if one did."""

    finish: FinishReason
    usage: Usage
    stop_string: str | None = None


Event = Opened | Text | Closed | Mended | Done
