"""The objects that answers are made of: those of the `openai` package, and what is added to them."""

from collections.abc import Sequence
from typing import Any

from openai.types import CompletionUsage, completion, completion_choice
from openai.types.chat import ChatCompletionMessage, chat_completion
from openai.types.chat.chat_completion_token_logprob import ChatCompletionTokenLogprob
from openai.types.completion_usage import CompletionTokensDetails, PromptTokensDetails

from ossia import __version__
from ossia.server.events import TokenLogprob, Usage

FINGERPRINT = f"ossia-{__version__}"
"""As `system_fingerprint`: the same seed gives the same answer where this and the model are the same."""

LEAST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON cannot say."""


class ReasoningLogprob(ChatCompletionTokenLogprob):
    """Log-probabilities of a token of the reasoning; numbered, so that client libraries can put streams together."""

    index: int


class ChatMessage(ChatCompletionMessage):
    """An assistant's message."""

    reasoning: str | None = None
    """What the model thought before it."""
    reasoning_logprobs: list[ReasoningLogprob] | None = None
    """Log-probabilities of that, where they were asked for."""
    mended: list[str] | None = None
    """What in the model's output had to be mended or forced, a line each; left out where nothing had."""


class ChatChoiceObject(chat_completion.Choice):
    """One answer."""

    message: ChatMessage  # pyright: ignore[reportIncompatibleVariableOverride]


class ChatCompletion(chat_completion.ChatCompletion):
    """The answer to a request for chat."""

    choices: list[ChatChoiceObject]  # pyright: ignore[reportIncompatibleVariableOverride]


Completion = completion.Completion
CompletionChoice = completion_choice.CompletionChoice


def usage_object(usages: Sequence[Usage], *, choices: int = 1) -> CompletionUsage:
    """Tokens of a request. choices: answers in a row that share a prompt, which counts once."""
    prompt = sum(usage.prompt_tokens for usage in usages[::choices])
    cached = sum(usage.cached_tokens for usage in usages[::choices])
    completion_tokens = sum(usage.completion_tokens for usage in usages)
    return CompletionUsage(
        prompt_tokens=prompt,
        completion_tokens=completion_tokens,
        total_tokens=prompt + completion_tokens,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=cached),
        completion_tokens_details=CompletionTokensDetails(
            reasoning_tokens=sum(usage.reasoning_tokens for usage in usages)
        ),
    )


def logprobs_json(logprobs: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    """As chat has them."""
    return [{**_logprob(one), "top_logprobs": [_logprob(other) for other in one.top]} for one in logprobs]


def _logprob(one: TokenLogprob) -> dict[str, Any]:
    return {"token": one.token, "bytes": list(one.bytes), "logprob": max(one.logprob, LEAST_LOGPROB)}
