"""Conversations in, packed batches out, in an order that is a function of the position alone.

A source answers for any index; a batch is the examples of the next indices, laid end to end. So the whole state of the
data is one integer, and a run that was killed goes on with the very batch it was about to read.

Shapes: T tokens of a batch, R tokens to be learnt.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ossia.errors import DataError, HarmonyError
from ossia.harmony import from_openai, render_training, training_turns
from ossia.harmony.tokenizer import Tokenizer

Record = Mapping[str, Any]
"""One conversation: `messages` in OpenAI form, and optionally `tools`, `effort` and `date`."""
Source = Callable[[int], Record]
"""Index → record, for any index from 0 on; a finite source starts again."""


@dataclass(frozen=True, slots=True)
class Example:
    """One assistant turn and all that came before it, as tokens; `learn` marks what the model must produce."""

    token_ids: list[int]
    learn: list[bool]


@dataclass(frozen=True, slots=True)
class Batch:
    """Examples end to end, shortest first, blind to one another."""

    token_ids: Tensor
    """int64 [T]."""
    positions: Tensor
    """int64 [T], from 0 within each example."""
    lengths: tuple[int, ...]
    rows: Tensor
    """int64 [R]: the places whose next token is to be learnt."""
    targets: Tensor
    """int64 [R]: those next tokens."""


def examples(record: Record, tokenizer: Tokenizer) -> list[Example]:
    """One example for each assistant turn of the record, earlier reasoning left out as it is when the model runs."""
    conversation = from_openai(
        record["messages"],
        tools=record.get("tools") or None,
        effort=record.get("effort", "medium"),
        date=record.get("date"),
    )
    return [Example(*render_training(turn, tokenizer)) for turn in training_turns(conversation)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batches:
    """Cuts a source into batches of about `batch_tokens` tokens."""

    source: Source
    tokenizer: Tokenizer
    batch_tokens: int
    max_length: int
    """Tokens an example may have; a longer one is a DataError, since cutting it would teach to stop early."""

    def at(self, index: int) -> tuple[Batch, int]:
        """The batch that starts with record `index`, and the index after its last record."""
        chosen: list[Example] = []
        total = 0
        while total < self.batch_tokens:
            for example in examples(self.source(index), self.tokenizer):
                length = len(example.token_ids)
                if length > self.max_length:
                    raise DataError(
                        f"record {index} has {length} tokens, more than --max-length {self.max_length}: "
                        f"shorten it or raise the limit"
                    )
                chosen.append(example)
                total += length
            index += 1
        return collate(chosen), index


def collate(chosen: list[Example]) -> Batch:
    """Lay examples end to end, shortest first, as the attention of ragged batches likes it."""
    chosen = sorted(chosen, key=lambda example: len(example.token_ids))
    lengths = tuple(len(example.token_ids) for example in chosen)
    token_ids = torch.tensor([token for example in chosen for token in example.token_ids])
    learn = torch.tensor([flag for example in chosen for flag in example.learn])
    following = learn.nonzero().squeeze(-1)
    return Batch(
        token_ids=token_ids,
        positions=torch.cat([torch.arange(length) for length in lengths]),
        lengths=lengths,
        rows=following - 1,
        targets=token_ids[following],
    )


def curriculum(seed: int, split: Literal["train", "heldout"] = "train") -> Source:
    """The demo model's own exercises, endless."""
    from ossia.demo.curriculum.mixture import sample

    def record(index: int) -> Record:
        drawn = sample(seed, index, split=split)
        return {"messages": drawn.messages, "tools": drawn.tools, "effort": drawn.effort, "date": drawn.date}

    return record


def jsonl(path: Path, seed: int, tokenizer: Tokenizer, max_length: int) -> Source:
    """Records of a JSONL file, one object a line, shuffled anew each time through.

    Every record is rendered once before anything is learnt. Raises DataError that names file, line and field where a
    line is not JSON, lacks `messages`, does not render, has no assistant turn, or gives an example that is too long.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error})") from None
    records: list[Record] = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                records.append(_record(line, tokenizer, max_length))
            except (DataError, HarmonyError) as error:
                raise DataError(f"{path}:{number}: {error}") from None
    if not records:
        raise DataError(f"{path}: holds no record; give one JSON object with `messages` a line")

    @lru_cache(maxsize=2)
    def order(epoch: int) -> list[int]:
        return torch.randperm(len(records), generator=torch.Generator().manual_seed(seed + epoch)).tolist()

    def record(index: int) -> Record:
        epoch, place = divmod(index, len(records))
        return records[order(epoch)[place]]

    return record


_FIELDS: dict[str, tuple[type, ...]] = {
    "messages": (list,),
    "tools": (list, type(None)),
    "effort": (str,),
    "date": (str, type(None)),
}


def _record(line: str, tokenizer: Tokenizer, max_length: int) -> Record:
    """One line of a file, checked. Raises DataError or HarmonyError that names the field."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON ({error})") from None
    if not isinstance(value, dict) or "messages" not in value:
        raise DataError("field messages is missing")
    for name, field in value.items():
        if name not in _FIELDS:
            raise DataError(f"unknown field {name}; known are {', '.join(_FIELDS)}")
        if not isinstance(field, _FIELDS[name]):
            raise DataError(f"field {name} is {type(field).__name__}; give {_FIELDS[name][0].__name__}")
    turns = examples(value, tokenizer)
    if not turns:
        raise DataError("field messages has no finished assistant turn, so there is nothing to learn")
    longest = max(len(turn.token_ids) for turn in turns)
    if longest > max_length:
        raise DataError(f"{longest} tokens, more than --max-length {max_length}: shorten it or raise the limit")
    return value
