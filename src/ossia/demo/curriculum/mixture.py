"""The whole curriculum: families with their weights, as one endless sequence in which every index stands for itself."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from random import Random

from ossia.demo.curriculum import arithmetic, problems, puzzles, safety, talk, tools
from ossia.demo.curriculum.sample import Sample, Split
from ossia.errors import DataError

Generator = Callable[[Random], Sample]

_MAX_DRAWS = 20_000


def _task(name: str) -> Generator:
    return lambda rng: puzzles.puzzle(rng, name)


def _tool_unneeded(rng: Random) -> Sample:
    """A sum or small talk while tools are on offer."""
    plain = rng.choice((arithmetic.addition, arithmetic.subtraction, arithmetic.multiplication, talk.small_talk))(rng)
    return replace(plain, family="tool_unneeded", tools=tools.offer(rng, rng.choice((1, 2))))


FAMILIES: dict[str, tuple[Generator, float]] = {
    "addition": (arithmetic.addition, 5.0),
    "subtraction": (arithmetic.subtraction, 7.0),
    "multiplication": (arithmetic.multiplication, 9.0),
    "division": (arithmetic.division, 9.0),
    "chain": (arithmetic.chain, 6.0),
    "word_problem": (problems.word_problem, 3.5),
    "chain_sum": (_task("chain_sum"), 2.5),
    "gcd": (_task("gcd"), 4.0),
    "leg_counting": (_task("leg_counting"), 3.0),
    "letter_counting": (_task("letter_counting"), 6.0),
    "number_filtering": (_task("number_filtering"), 5.0),
    "spell_backward": (_task("spell_backward"), 7.0),
    "tool_call": (tools.tool_call, 12.0),
    "tool_call_rare": (tools.tool_call_rare, 7.0),
    "tool_answer": (tools.tool_answer, 4.0),
    "tool_missing": (tools.tool_missing, 4.0),
    "tool_unneeded": (_tool_unneeded, 4.0),
    "misuse": (safety.misuse, 6.0),
    "benign_twin": (safety.benign_twin, 7.0),
    "small_talk": (talk.small_talk, 4.0),
    "out_of_scope": (talk.out_of_scope, 2.0),
    "dialogue": (talk.dialogue, 2.5),
}
"""Family → its generator and its share of the mixture; only the ratios of the shares count. What is hard has more."""

EVALUATION_ONLY: dict[str, Generator] = {
    "tool_call_unseen": tools.tool_call_unseen,
    "tool_call_invented": tools.tool_call_invented,
}
"""Families no training run draws from."""

_NAMES = tuple(FAMILIES)
_SHARES = tuple(share for _, share in FAMILIES.values())


def sample(seed: int, index: int, *, split: Split = "train", family: str | None = None) -> Sample:
    """The sample at one place of the sequence: a function of its arguments alone.

    `family` restricts the draw to one family, as evaluation wants. Raises DataError for an unknown family.
    """
    rng = Random(f"{seed}/{split}/{family}/{index}")
    name = rng.choices(_NAMES, _SHARES)[0] if family is None else family
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
