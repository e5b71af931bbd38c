"""What is asked of the engine, checked before any work is done, and what it answers. Pure Python, no torch."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, Protocol

from ossia.errors import RequestError

MAX_SEED = 2**63 - 1
MAX_LOGPROBS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next token is drawn, and when to stop. Raises RequestError for a value out of range.

    The model's logits go through, in this order: repetition_penalty, presence_penalty, frequency_penalty, logit_bias,
    the request's constraint, temperature; then the filters top_k, top_p, min_p, each on the probabilities that the one
    before has left. Temperature 0 takes the likeliest after the constraint.
    """

    temperature: float = 1.0
    """0 takes the likeliest token, always."""
    top_p: float = 1.0
    """Keep the likeliest tokens that together reach this probability; 1 keeps all."""
    top_k: int = 0
    """Keep this many of the likeliest tokens; 0 keeps all."""
    min_p: float = 0.0
    """Keep tokens at least this probable relative to the likeliest; 0 keeps all."""
    seed: int | None = None
    """Same seed, same tokens, whatever runs beside; None draws a fresh one."""
    max_tokens: int | None = None
    """Longest answer; None goes on to the end of the context."""
    stop_ids: frozenset[int] = frozenset()
    """An answer ends with the first of these, which it includes."""
    repetition_penalty: float = 1.0
    """Of each token in prompt or answer: a positive logit is divided by it, a negative one multiplied."""
    presence_penalty: float = 0.0
    """Taken from the logit of each token that the answer has; -2 to 2."""
    frequency_penalty: float = 0.0
    """Taken from the logit of a token once for each time that the answer has it; -2 to 2."""
    logit_bias: Mapping[int, float] = field(default_factory=dict[int, float])
    """Added to the logits of these tokens; -100 to 100."""
    logprobs: int | None = None
    """Log-probabilities: None for none, else of the token drawn and of so many of the likeliest, 0 to 20."""

    def __post_init__(self) -> None:
        _check_real("temperature", self.temperature, 0.0, math.inf)
        _check_real("top_p", self.top_p, 0.0, 1.0)
        _check_real("min_p", self.min_p, 0.0, 1.0)
        if self.top_p == 0:
            raise RequestError("top_p is 0: give a number above 0, or temperature 0 for the likeliest token")
        _check_whole("top_k", self.top_k, 0)
        if self.seed is not None:
            _check_whole("seed", self.seed, 0, MAX_SEED)
        if self.max_tokens is not None:
            _check_whole("max_tokens", self.max_tokens, 1)
        object.__setattr__(self, "stop_ids", frozenset(self.stop_ids))
        _check_real("repetition_penalty", self.repetition_penalty, 0.0, math.inf)
        if self.repetition_penalty == 0:
            raise RequestError("repetition_penalty is 0: give a number above 0; 1 changes nothing")
        _check_real("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _check_real("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        for token, bias in self.logit_bias.items():
            _check_whole("a token of logit_bias", token, 0)
            _check_real(f"logit_bias of token {token}", bias, -100.0, 100.0)
        object.__setattr__(self, "logit_bias", MappingProxyType(dict(self.logit_bias)))
        if self.logprobs is not None:
            _check_whole("logprobs", self.logprobs, 0, MAX_LOGPROBS)

    @property
    def shapes_logits(self) -> bool:
        """Whether penalties or a bias change the logits."""
        return bool(self.logit_bias) or self.repetition_penalty != 1 or self.counts_answer

    @property
    def counts_answer(self) -> bool:
        """Whether the logits depend on how often the answer has a token."""
        return self.presence_penalty != 0 or self.frequency_penalty != 0


Mask = Any
"""A numpy array, int32 [ceil(V / 32)]: bit v % 32 of word v // 32 is set where token v is allowed."""


class Constraint(Protocol):
    """What may follow in the answer of one request. One object a request, used by the engine's thread alone."""

    def mask(self, remaining: int) -> Mask | None:
        """Which tokens may come next, at least one; None allows all.

        `remaining`: tokens that may still be generated, this one included.
        """
        ...

    def accept(self, token: int) -> None:
        """This one came."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What had to be forced, a line each."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One answer that is asked for."""

    prompt: tuple[int, ...]
    sampling: Sampling = field(default_factory=Sampling)
    constraint: Constraint | None = None
    adapter: str | None = None
    """Name of the adapter that answers; None is the model itself."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt", tuple(self.prompt))


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """One token of an answer."""

    token: int
    logprob: float | None = None
    """Its log-probability by the model's own distribution, before anything changes that; None where not asked for."""
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens and their log-probabilities, likeliest first."""


Finish = Literal["stop", "length", "cancelled", "error"]
"""Why an answer ended: a stop token came (it is delivered too), there is no more room, the caller left, it failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """What a request has new. The last one of a request, and no other, has `finish` set."""

    drawn: tuple[Drawn, ...] = ()
    cached_tokens: int = 0
    """Tokens of the prompt that need not be computed; right from the first output that holds a token."""
    finish: Finish | None = None
    error: str | None = None
    """One line, with finish "error"."""


def check_prompt(token_ids: Sequence[int], *, vocab_size: int, context: int, room: int = 1) -> None:
    """Raise RequestError unless the prompt holds known ids, at least one, and leaves `room` tokens of the context."""
    if len(token_ids) == 0:
        raise RequestError("the prompt is empty: give at least one token")
    if len(token_ids) + room > context:
        raise RequestError(
            f"the prompt has {len(token_ids)} tokens and the context {context}"
            f"{', answer included' if room else ''}: shorten the prompt"
        )
    for index, token in enumerate(token_ids):
        if not 0 <= token < vocab_size:
            raise RequestError(
                f"token id {token} at index {index} is outside the vocabulary of {vocab_size}: "
                "encode the prompt with this model's tokenizer"
            )


def check_bias(sampling: Sampling, *, vocab_size: int) -> None:
    """Raise RequestError where logit_bias names a token that the model does not have."""
    if (token := max(sampling.logit_bias, default=0)) >= vocab_size:
        raise RequestError(f"logit_bias has token id {token}, outside the vocabulary of {vocab_size}: leave it out")


def answer_limit(sampling: Sampling, prompt_length: int, context: int) -> int:
    """The most tokens that an answer to a prompt of this length may have."""
    left = context - prompt_length
    return left if sampling.max_tokens is None else min(left, sampling.max_tokens)


def _check_real(name: str, value: float, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise RequestError(f"{name} is {value!r}: give a finite number")
    if not low <= value <= high:
        wanted = f"at least {low:g}" if math.isinf(high) else f"between {low:g} and {high:g}"
        raise RequestError(f"{name} is {value!r}: give a number {wanted}")


def _check_whole(name: str, value: int, low: int, high: int | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, int):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise RequestError(f"{name} is {value!r}: give a whole number")
    if value < low or (high is not None and value > high):
        wanted = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise RequestError(f"{name} is {value!r}: give a whole number {wanted}")
