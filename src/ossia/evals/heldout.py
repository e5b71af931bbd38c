"""Accuracy by family on held-out prompts of the demo curriculum.

Every reply has one outcome: right, wrong, cut (the budget ended before the turn did) or empty (it ended with neither an
answer nor a call). Only right ones count as right, and the others are told apart, so that a budget that is too small
cannot pass for a model that cannot calculate.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from ossia.demo.curriculum.grading import grade
from ossia.demo.curriculum.mixture import EVALUATION_ONLY, FAMILIES, sample
from ossia.demo.curriculum.safety import is_refusal
from ossia.demo.curriculum.sample import EFFORTS, Sample
from ossia.engine.engine import generate_batch
from ossia.engine.request import Sampling
from ossia.harmony import from_openai, render_completion
from ossia.harmony.tokenizer import Tokenizer
from ossia.llm import LLM
from ossia.reply import Stream

Outcome = Literal["right", "wrong", "cut", "empty"]

ALL_FAMILIES: tuple[str, ...] = (*FAMILIES, *EVALUATION_ONLY)
ARITHMETIC = ("addition", "subtraction", "multiplication", "division", "chain")

_MAX_DRAWS_PER_PROMPT = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What one family came to."""

    family: str
    outcomes: dict[str, int]
    reasoning_tokens: dict[str, float]
    """Effort → mean tokens of reasoning."""
    wrong: list[dict[str, str]]
    """The first few replies that were not right: prompt, expected, reply."""
    declined: int
    """Replies that refuse, right or not."""

    @property
    def count(self) -> int:
        """Prompts asked."""
        return sum(self.outcomes.values())

    @property
    def accuracy(self) -> float:
        """Part of the prompts that were answered right."""
        return self.outcomes.get("right", 0) / self.count


def wilson(right: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """The Wilson score interval of a proportion; 95 % by default."""
    if not count:
        return 0.0, 1.0
    share, spread = right / count, z * z / count
    middle = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / count + spread / (4 * count)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def draw(family: str, count: int, seed: int) -> list[Sample]:
    """Up to `count` held-out samples of a family, no prompt and effort twice; fewer where the family has no more."""
    chosen: dict[tuple[str, str], Sample] = {}
    for index in range(count * _MAX_DRAWS_PER_PROMPT):
        drawn = sample(seed, index, split="heldout", family=family)
        chosen.setdefault((drawn.prompt_key, drawn.effort), drawn)
        if len(chosen) == count:
            break
    return list(chosen.values())


def evaluate(
    llm: LLM,
    families: Sequence[str],
    *,
    count: int,
    seed: int,
    max_tokens: int,
    max_batch: int = 32,
    progress: Callable[[int], None] = lambda _done: None,
) -> list[Result]:
    """Ask `count` held-out prompts of each family at temperature 0. `progress` gets the number of replies so far."""
    samples = [one for family in families for one in draw(family, count, seed)]
    return ask(llm, samples, max_tokens=max_tokens, max_batch=max_batch, progress=progress)


def ask(
    llm: LLM,
    samples: Sequence[Sample],
    *,
    max_tokens: int,
    max_batch: int = 32,
    adapter: str | None = None,
    progress: Callable[[int], None] = lambda _done: None,
) -> list[Result]:
    """Ask the prompts of these samples at temperature 0; one result for each family, in the order of the first ones.

    `adapter` is the name of one that was loaded, to be asked instead of the model alone.
    """
    tokenizer = llm.tokenizer
    prompts = [_prompt(one, tokenizer) for one in samples]
    sampling = Sampling(temperature=0, max_tokens=max_tokens, stop_ids=tokenizer.stop_ids)
    answers: dict[int, list[int]] = {}
    for index, answer in generate_batch(
        llm.adapted(adapter), prompts, sampling, max_batch=max_batch, context=llm.context, cache_type=llm.cache_type
    ):
        answers[index] = answer
        progress(len(answers))
    graded = [_graded(one, answers[index], tokenizer) for index, one in enumerate(samples)]
    families = dict.fromkeys(one.family for one in samples)
    return [_result(family, [entry for entry in graded if entry.sample.family == family]) for family in families]


def _prompt(one: Sample, tokenizer: Tokenizer) -> list[int]:
    conversation = from_openai(one.prompt, tools=one.tools or None, effort=one.effort, date=one.date)
    return render_completion(conversation, tokenizer)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Graded:
    sample: Sample
    outcome: Outcome
    said: str
    """The answer and the calls, as text."""
    declined: bool
    reasoning_tokens: int


def _graded(one: Sample, answer: list[int], tokenizer: Tokenizer) -> _Graded:
    stream = Stream(iter(answer), tokenizer, num_prompt_tokens=0)
    for _ in stream:
        pass
    reply = stream.reply()
    # Only what ended with the token for a call was called.
    calls = [dict(call) for call in reply.tool_calls] if answer[-1] == tokenizer.special["<|call|>"] else []
    said = reply.final + "".join(f"{call['function']['name']}({call['function']['arguments']})" for call in calls)
    if answer[-1] not in tokenizer.stop_ids:
        outcome: Outcome = "cut"
    elif not said:
        outcome = "empty"
    else:
        outcome = "right" if grade(one, reply.final, calls) else "wrong"
    return _Graded(
        sample=one,
        outcome=outcome,
        said=said,
        declined=is_refusal(reply.final),
        reasoning_tokens=reply.usage.reasoning_tokens,
    )


def _result(family: str, graded: list[_Graded]) -> Result:
    by_effort = {e: [one.reasoning_tokens for one in graded if one.sample.effort == e] for e in EFFORTS}
    return Result(
        family=family,
        outcomes=dict(Counter(one.outcome for one in graded)),
        declined=sum(one.declined for one in graded),
        reasoning_tokens={e: round(sum(tokens) / len(tokens), 1) for e, tokens in by_effort.items() if tokens},
        wrong=[
            {
                "prompt": one.sample.prompt[-1]["content"],
                "effort": one.sample.effort,
                "expected": one.sample.messages[-1].get("content") or str(one.sample.call),
                "reply": one.said,
                "outcome": one.outcome,
            }
            for one in graded
            if one.outcome != "right"
        ][:5],
    )
