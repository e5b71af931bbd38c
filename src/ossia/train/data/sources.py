"""The order in which records come: a function of the seed and of how many came before."""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from ossia.errors import DataError
from ossia.train.data.records import (
    GeneratedRecords,
    Records,
    Split,
    dataset_records,
    demo_records,
    demo_texts,
    file_records,
)

Counts = tuple[int, ...]
"""How many records each part of a source has given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Several sets of records, mixed. Finite ones start again in another order whenever they have come to their end."""

    parts: tuple[Records, ...]
    weights: tuple[float, ...]
    """Records of one part that come for each of another's."""
    seed: int

    def turn(self, counts: Counts) -> int:
        """The part whose turn it is: the one that lags most behind its share."""
        ahead = (sum(counts) + 1) / sum(self.weights)
        lags = [weight * ahead - count for weight, count in zip(self.weights, counts, strict=True)]
        return lags.index(max(lags))

    def index(self, part: int, place: int) -> int:
        """The record that part gives after `place` others."""
        count = self.parts[part].count
        if count is None:
            return place
        epoch, place = divmod(place, count)
        return shuffled(place, count, key=f"{self.seed}/{part}/{epoch}")


def after(counts: Counts, part: int) -> Counts:
    """The counts when one more record of `part` was given."""
    return (*counts[:part], counts[part] + 1, *counts[part + 1 :])


def shuffled(place: int, count: int, *, key: str) -> int:
    """What stands at `place` when 0 to count - 1 are shuffled, by a Feistel network: nothing is stored.

    The network permutes the next power of four; places beyond `count` are walked through until one lies within.
    """
    half = (max(count - 1, 1).bit_length() + 1) // 2
    mask = (1 << half) - 1
    while True:
        left, right = place >> half, place & mask
        for turn in range(6):
            mixed = hashlib.blake2b(f"{key}/{turn}/{right}".encode(), digest_size=8).digest()
            left, right = right, left ^ (int.from_bytes(mixed, "big") & mask)
        place = left << half | right
        if place < count:
            return place


_WEIGHTED = re.compile(r"(?P<name>.+)\*(?P<weight>[^*/]+)")


def source_of(specs: str | Sequence[str], *, seed: int, split: Split = "train") -> Source:
    """The source that `specs` name, each of them a set of records and, after `*`, its weight (1 where none is given):

        demo           the bundled model's exercises       demo-text      its texts for pretraining
        FILE.jsonl     one record a line                   FILE.txt       documents, two blank lines between them
        hf:NAME[:SPLIT]    a Hugging Face dataset by its name, a folder or a file (parquet, csv, json)

    `split` is for what this repository generates; a file is whatever it is. Raises DataError for a spec that is none of
    these, and for a file or dataset that cannot be read or is empty.
    """
    parts: list[Records] = []
    weights: list[float] = []
    for spec in [specs] if isinstance(specs, str) else specs:
        name, weight = _weighted(spec)
        parts.append(_records(name, seed, split))
        weights.append(weight)
    if not parts:
        raise DataError("no data is named: give --data, such as demo or a .jsonl file")
    return Source(parts=tuple(parts), weights=tuple(weights), seed=seed)


_GENERATORS: dict[str, Callable[[int, Split], GeneratedRecords]] = {"demo": demo_records, "demo-text": demo_texts}


def _records(name: str, seed: int, split: Split) -> Records:
    if name in _GENERATORS:
        return _GENERATORS[name](seed, split)
    if name.startswith("hf:"):
        return dataset_records(name.removeprefix("hf:"))
    return file_records(Path(name))


def _weighted(spec: str) -> tuple[str, float]:
    match = _WEIGHTED.fullmatch(spec)
    if match is None:
        return spec, 1.0
    try:
        weight = float(match["weight"])
    except ValueError:
        weight = 0.0
    if not (isfinite(weight) and weight > 0):
        raise DataError(f"{spec}: the weight after * is {match['weight']!r}; give a number above 0, such as 0.5")
    return match["name"], weight
