"""Tasks of reasoning-gym (Apache-2.0), small ones, with solutions worked here and its own scorer as the grader.

reasoning_gym is needed only to draw and grade puzzles, so it is imported on first use. Its items are a function of
the dataset's seed and the index; the seed is fixed and the index drawn.
"""

import ast
import re
from functools import cache
from random import Random
from typing import Any

from ossia.demo.curriculum import scratch
from ossia.demo.curriculum.arithmetic import chain_work
from ossia.demo.curriculum.sample import Effort, Sample, assistant, draw_date, draw_effort, opening, user
from ossia.demo.curriculum.scratch import Operation

TASKS: dict[str, dict[str, Any]] = {
    "chain_sum": {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 3},
    "gcd": {"min_value": 2, "max_value": 60},
    "leg_counting": {"min_animals": 2, "max_animals": 3, "min_instances": 1, "max_instances": 9},
    "letter_counting": {"min_words": 1, "max_words": 2},
    "number_filtering": {"min_numbers": 3, "max_numbers": 6, "max_decimals": 0, "min_value": 0.0, "max_value": 99.0},
    "spell_backward": {"min_word_len": 3, "max_word_len": 5},
}
DATASET_SEED = 2025


@cache
def dataset(task: str) -> Any:
    """The generator of one task; `[index]` gives question, answer and metadata, `score_answer` grades."""
    import reasoning_gym

    return reasoning_gym.create_dataset(task, size=2**31, seed=DATASET_SEED, **TASKS[task])


def puzzle(rng: Random, task: str) -> Sample:
    """One item of a task with its work written out."""
    effort = draw_effort(rng)
    index = rng.getrandbits(30)
    entry = dataset(task)[index]
    lines = SOLVERS[task](entry, effort)
    question = entry["question"].strip()
    return Sample(
        family=task,
        effort=effort,
        messages=[*opening(rng), user(question), assistant("\n".join(lines), entry["answer"])],
        tools=[],
        check="reasoning_gym",
        answer=str(index),
        keys=(re.sub(r"\s", "", question.split(":")[1]).rstrip("="),) if task == "chain_sum" else (),
        date=draw_date(rng),
    )


def score(task: str, index: int, reply: str) -> bool:
    """Whether reasoning_gym gives the reply full marks."""
    puzzles = dataset(task)
    return puzzles.score_answer(answer=reply.strip(), entry=puzzles[index]) == 1.0


# -------------------------------------------------------------------- worked solutions


def _chain_sum(entry: Any, effort: Effort) -> list[str]:
    first, *rest = entry["question"].split(":")[1].strip(" =\n").split()
    operations: list[Operation] = ["+" if sign == "+" else "-" for sign in rest[0::2]]
    return chain_work([int(first), *map(int, rest[1::2])], operations, effort).lines


def _gcd(entry: Any, effort: Effort) -> list[str]:
    a, b = sorted((int(value) for value in re.findall(r"\d+", entry["question"])), reverse=True)
    first = (a, b)
    lines = ["Divide, then divide the divisor by the rest, until the rest is 0."] if effort != "low" else []
    lines.append(f"{a},{b}")
    while b:
        quotient, rest = divmod(a, b)
        line = f"{a}={b}*{quotient}+{rest}"
        lines.append(line if effort == "low" else f"{line}, rest {rest}.")
        a, b = b, rest
    lines.append(f"gcd={a}")
    if effort == "high":
        lines += ["Check:", *(f"{value}={a}*{value // a}" for value in first), f"{a} divides both."]
    return lines


def _leg_counting(entry: Any, effort: Effort) -> list[str]:
    lines = ["Count the legs of each kind, then add."] if effort != "low" else []
    totals: list[int] = []
    legs = _legs()
    for animal, count in entry["metadata"]["animals"].items():
        totals.append(count * legs[animal])
        line = f"{count} {animal}: {count}*{legs[animal]}={totals[-1]}"
        lines.append(line if effort == "low" else f"A {animal} has {legs[animal]} legs. {line}")
    total = totals[0]
    for term in totals[1:]:
        work = scratch.add(total, term, spoken=effort != "low")
        lines += work.lines
        if effort == "high":
            lines += scratch.check(total, "+", term, work)
        total = work.result
    return lines


@cache
def _legs() -> dict[str, int]:
    from reasoning_gym.arithmetic.leg_counting import ANIMALS

    return dict(ANIMALS)


def _letter_counting(entry: Any, effort: Effort) -> list[str]:
    letter, text = re.findall(r'"([^"]*)"', entry["question"])
    lines = [f"Spell it and count each {letter}."] if effort != "low" else []
    total = 0
    for word in text.split():
        marks, total = scratch.counted(word, letter, total)
        lines.append(f"{word}: {marks}")
        if effort != "low":
            lines.append(f"After {word} the count is {total}.")
    lines.append(f"{letter}={total}")
    if effort == "high":
        marks, total = scratch.counted("".join(reversed(text.replace(" ", ""))), letter)
        lines += ["Again from the end:", marks, f"{total} is right."]
    return lines


def _number_filtering(entry: Any, effort: Effort) -> list[str]:
    verb, size = re.match(r"(Keep|Remove) all numbers (larger|smaller)", entry["question"]).groups()  # type: ignore[union-attr]
    bound = re.search(r"than (-?\d+)", entry["question"]).group(1)  # type: ignore[union-attr]
    numbers: list[str] = ast.literal_eval(entry["question"].split("list: ")[1].split("\n")[0])
    kept: list[str] = ast.literal_eval(entry["answer"])
    lines = [f"{verb} what is {size} than {bound}."] if effort != "low" else []
    lines += scratch.filtered(numbers, bound, larger=size == "larger", keep=verb == "Keep", spoken=effort != "low")
    if effort == "high":
        lines.append(f"Kept {len(kept)} of {len(numbers)}: {' '.join(kept) or 'none'}.")
    return lines


def _spell_backward(entry: Any, effort: Effort) -> list[str]:
    word = entry["question"].rsplit(" ", 1)[1].strip()
    lines = [f"Spell {word}, then read it from the end."] if effort != "low" else []
    lines += scratch.backward(word)
    if effort == "high":
        lines.append("Check:")
        lines += [f"{place} from the end: {letter}" for place, letter in enumerate(reversed(word), 1)]
    return lines


SOLVERS = {
    "chain_sum": _chain_sum,
    "gcd": _gcd,
    "leg_counting": _leg_counting,
    "letter_counting": _letter_counting,
    "number_filtering": _number_filtering,
    "spell_backward": _spell_backward,
}
