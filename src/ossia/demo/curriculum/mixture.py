"""The whole curriculum: families with their weights, as one endless sequence in which every index stands for itself."""

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import replace
from random import Random

from ossia.demo.curriculum import arithmetic, problems, puzzles, safety, talk, tools
from ossia.demo.curriculum.sample import Sample, Split
from ossia.errors import DataError

Generator = Callable[[Random], Sample]
Shares = tuple[float, float, float]

_MAX_DRAWS = 20_000


def _task(name: str) -> Generator:
    return lambda rng: puzzles.puzzle(rng, name)


def _tool_unneeded(rng: Random) -> Sample:
    """A sum or small talk while tools are on offer."""
    plain = rng.choice((arithmetic.addition, arithmetic.subtraction, arithmetic.multiplication, talk.small_talk))(rng)
    return replace(plain, family="tool_unneeded", tools=tools.offer(rng, rng.choice((1, 2))))


FAMILIES: dict[str, tuple[Generator, Shares]] = {
    "addition": (arithmetic.addition, (8.0, 5.0, 4.0)),
    "subtraction": (arithmetic.subtraction, (9.0, 5.0, 4.5)),
    "multiplication": (arithmetic.multiplication, (13.0, 7.0, 5.0)),
    "division": (arithmetic.division, (12.0, 6.0, 4.5)),
    "chain": (arithmetic.chain, (7.0, 5.0, 5.0)),
    "word_problem": (problems.word_problem, (3.5, 2.0, 1.0)),
    "chain_sum": (_task("chain_sum"), (1.5, 1.0, 0.5)),
    "gcd": (_task("gcd"), (2.0, 1.0, 0.5)),
    "leg_counting": (_task("leg_counting"), (2.0, 1.5, 0.5)),
    "letter_counting": (_task("letter_counting"), (1.0, 0.5, 0.25)),
    "number_filtering": (_task("number_filtering"), (1.0, 0.5, 0.25)),
    "spell_backward": (_task("spell_backward"), (0.5, 0.25, 0.25)),
    "tool_call": (tools.tool_call, (14.0, 32.0, 52.0)),
    "tool_call_rare": (tools.tool_call_rare, (6.0, 8.0, 4.0)),
    "tool_answer": (tools.tool_answer, (2.5, 6.0, 3.0)),
    "tool_missing": (tools.tool_missing, (5.0, 6.0, 4.0)),
    "tool_unneeded": (_tool_unneeded, (2.0, 2.0, 1.5)),
    "misuse": (safety.misuse, (4.0, 3.5, 2.5)),
    "benign_twin": (safety.benign_twin, (4.0, 4.0, 3.0)),
    "small_talk": (talk.small_talk, (4.0, 3.0, 2.0)),
    "out_of_scope": (talk.out_of_scope, (2.0, 1.5, 1.0)),
    "dialogue": (talk.dialogue, (2.0, 1.5, 0.75)),
}
"""Family → its generator and its share of the mixture in each phase; only the ratios of the shares count."""
PHASES = (0, 86_000, 113_000)
"""Index from which each phase counts. Once digits are mastered the mixture leans to calls, which take longest."""

EVALUATION_ONLY: dict[str, Generator] = {
    "tool_call_unseen": tools.tool_call_unseen,
    "tool_call_invented": tools.tool_call_invented,
}
"""Families no training run draws from."""

_NAMES = tuple(FAMILIES)
_SHARES = tuple(zip(*(shares for _, shares in FAMILIES.values()), strict=True))


def sample(seed: int, index: int, *, split: Split = "train", family: str | None = None) -> Sample:
    """The sample at one place of the sequence: a function of its arguments alone.

    `family` restricts the draw to one family, as evaluation wants. Raises DataError for an unknown family.
    """
    rng = Random(f"{seed}/{split}/{family}/{index}")
    phase = bisect_right(PHASES, index) - 1
    name = rng.choices(_NAMES, _SHARES[phase])[0] if family is None else family
    if name in EVALUATION_ONLY:
        if split == "train":
            raise DataError(f"family {name} is for evaluation alone: ask for split heldout")
        return EVALUATION_ONLY[name](rng)
    if name not in FAMILIES:
        raise DataError(f"unknown family {name!r}: known are {', '.join([*FAMILIES, *EVALUATION_ONLY])}")
    generator = FAMILIES[name][0]
    for _ in range(_MAX_DRAWS):
        drawn = generator(rng)
        if drawn.belongs(split):
            return drawn
    raise DataError(f"family {name} has no prompt of split {split} in {_MAX_DRAWS} draws: widen it")


def samples(seed: int, *, split: Split = "train", start: int = 0) -> Iterator[Sample]:
    """The sequence from `start` on, without end."""
    index = start
    while True:
        yield sample(seed, index, split=split)
        index += 1
