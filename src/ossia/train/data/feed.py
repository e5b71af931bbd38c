"""The batches of each step, from a position that is all the state there is."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol

from ossia.errors import ConfigError, DataError, TrainingError
from ossia.harmony.tokenizer import Tokenizer
from ossia.train.data.accounting import Accounting
from ossia.train.data.packing import Batch, Document, collate, shares
from ossia.train.data.records import Records
from ossia.train.data.rendering import Fitted, Rendering, TooLong
from ossia.train.data.sources import Counts, Source, after

_MOST_BARREN = 10_000
"""Records in a row that may give no document, all being too long, before that is an error."""


class Feed(Protocol):
    """Where a loop gets its batches."""

    def next(self, step: int) -> list[Batch]:
        """The micro-batches of one optimiser step (counted from 0), for this rank."""
        ...

    def state(self) -> dict[str, Any]:
        """What goes into a saved state: JSON, with which `restore` goes on after the last batch that was given out."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`. Raises TrainingError, naming the source, where the data changed since."""
        ...

    def accounting(self) -> dict[str, int]:
        """Counts of all that was given out so far, to all ranks together."""
        ...


@dataclass(frozen=True, slots=True)
class Position:
    """Where the data stand: all that is to come follows from it."""

    counts: Counts
    pieces: int = 0
    """Pieces of the record whose turn it is that were given out already."""
    accounting: Accounting = field(default_factory=Accounting)


@dataclass(slots=True, kw_only=True)
class PackedFeed:
    """Micro-batches of at most `batch_tokens` tokens over all ranks, each rank getting its share of the documents.

    A document longer than `batch_tokens` is a micro-batch by itself. While a step is computed the next one is drawn.
    """

    source: Source
    rendering: Rendering
    batch_tokens: int
    micro_batches: int
    rank: int = 0
    world: int = 1
    _position: Position = field(init=False)
    _digests: list[dict[str, str]] = field(init=False)
    _fitted: Callable[[int, int], list[Fitted]] = field(init=False)
    _ahead: "Future[tuple[list[Batch], Position]] | None" = field(default=None, init=False)
    _executor: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "data"), init=False)

    def __post_init__(self) -> None:
        self._position = Position(tuple(0 for _ in self.source.parts))
        self._digests = [{"name": part.name, "digest": part.digest} for part in self.source.parts]
        self._fitted = lru_cache(1)(self._render)  # What did not fit into one batch opens the next.

    def next(self, step: int) -> list[Batch]:
        """The micro-batches after those of the last call; not `step` decides, but the position."""
        batches, self._position = self._ahead.result() if self._ahead else self._draw(self._position)
        self._ahead = self._executor.submit(self._draw, self._position)
        return batches

    def state(self) -> dict[str, Any]:
        """The position, and a digest of each part of the source."""
        at = self._position
        return {
            "sources": self._digests,
            "counts": list(at.counts),
            "pieces": at.pieces,
            "accounting": at.accounting.as_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`, whatever the number of ranks was. Raises TrainingError where the data changed since."""
        try:
            before = [(str(each["name"]), str(each["digest"])) for each in state["sources"]]
            position = Position(tuple(state["counts"]), state["pieces"], Accounting(**state["accounting"]))
        except (KeyError, TypeError) as error:
            raise TrainingError(f"the saved position of the data cannot be read ({error}): start anew") from None
        if len(before) != len(self._digests):
            named = ", ".join(name for name, _ in before)
            raise TrainingError(f"the run was begun with the data {named}: resume with the same, in the same order")
        for (name, digest), now in zip(before, self._digests, strict=True):
            if digest != now["digest"]:
                raise TrainingError(
                    f"{now['name']} is not the data with which the run was begun ({name}, sha256 {digest[:12]}, now "
                    f"{now['digest'][:12]}): resume with the same, or start anew in another --out"
                )
        self._position, self._ahead = position, None

    def accounting(self) -> dict[str, int]:
        """Counts of all that was given out so far, to all ranks together."""
        return self._position.accounting.as_dict()

    def _draw(self, position: Position) -> tuple[list[Batch], Position]:
        batches: list[Batch] = []
        for _ in range(self.micro_batches):
            documents, position = self._take(position)
            batches.append(collate(shares(documents, self.world)[self.rank]))
        return batches, position

    def _take(self, position: Position) -> tuple[list[Document], Position]:
        """Documents from `position` on that make one micro-batch, at least one, and the position after them."""
        chosen: list[Document] = []
        total = barren = 0
        counts, pieces, accounting = position.counts, position.pieces, position.accounting
        while total < self.batch_tokens:
            part = self.source.turn(counts)
            for document, became in self._fitted(part, counts[part])[pieces:]:
                if document is not None:
                    if chosen and total + len(document) > self.batch_tokens:
                        return chosen, Position(counts, pieces, accounting)
                    chosen.append(document)
                    total += len(document)
                pieces += 1
                accounting += became
            counts, pieces = after(counts, part), 0
            accounting += Accounting(records=1)
            barren = 0 if chosen else barren + 1
            if barren == _MOST_BARREN:
                raise DataError(
                    f"{self.source.parts[part].name}: {barren} records in a row are longer than --max-length "
                    f"{self.rendering.max_length}: raise the limit"
                )
        return chosen, Position(counts, pieces, accounting)

    def _render(self, part: int, place: int) -> list[Fitted]:
        return self.rendering.fitted(self.source.parts[part], self.source.index(part, place))


def packed_feed(
    source: Source,
    tokenizer: Tokenizer,
    *,
    batch_tokens: int,
    micro_batches: int,
    max_length: int,
    too_long: TooLong = "error",
    every_token: bool = False,
    vocab_size: int | None = None,
    rank: int = 0,
    world: int = 1,
) -> PackedFeed:
    """A feed of `source`, all of whose finite parts are rendered once before anything is given out.

    Args:
        batch_tokens: most tokens of a micro-batch over all ranks.
        micro_batches: how many make a step.
        max_length: most tokens of a document; texts are divided, conversations treated as `too_long` says.
        every_token: whether requests and instructions are learnt too, as in pretraining.
        vocab_size: ids the model has, against which every token is checked.

    Raises:
        ConfigError: a size is too small, or several ranks could not each be given a document.
        DataError: a record does not render or is too long (naming file, line and field), or nothing is left to learn.
    """
    for name, value, least in (
        ("--batch-tokens", batch_tokens, 1),
        ("micro-batches", micro_batches, 1),
        ("--max-length", max_length, 2),
    ):
        if value < least:
            raise ConfigError(f"{name} is {value}: give {least} or more")
    if world > 1 and batch_tokens < world * max_length:
        raise ConfigError(
            f"--batch-tokens {batch_tokens} might leave one of {world} ranks without a document of up to --max-length "
            f"{max_length}: give {world * max_length} or more, or a smaller --max-length"
        )
    rendering = Rendering(
        tokenizer=tokenizer, max_length=max_length, too_long=too_long, every_token=every_token, vocab_size=vocab_size
    )
    check(source, rendering)
    return PackedFeed(
        source=source,
        rendering=rendering,
        batch_tokens=batch_tokens,
        micro_batches=micro_batches,
        rank=rank,
        world=world,
    )


def check(source: Source, rendering: Rendering) -> None:
    """Render every record of the finite parts.

    Raises DataError that names file, line and field of the first record which does not render, is too long or has
    nothing to learn, and where a part has nothing left at all.
    """
    for part in source.parts:
        if part.count is not None and not account(part, rendering, part.count).documents:
            raise DataError(
                f"{part.name}: nothing is left to learn, all is longer than --max-length {rendering.max_length}: "
                f"raise the limit"
            )


def account(records: Records, rendering: Rendering, count: int) -> Accounting:
    """What becomes of the first `count` records. Raises DataError where one of them cannot be rendered."""
    fitted = (became for index in range(count) for _, became in rendering.fitted(records, index))
    return sum(fitted, Accounting(records=count))


def batches_of(source: Source, rendering: Rendering, *, records: int, batch_tokens: int) -> list[Batch]:
    """The first `records` records of `source` as batches of at most `batch_tokens` tokens, as a validation wants them.

    A finite part is not begun again: it ends where its records do. Raises DataError as `check` does.
    """
    counts: Counts = tuple(0 for _ in source.parts)
    documents: list[Document] = []
    for _ in range(records):
        part = source.turn(counts)
        if counts[part] == source.parts[part].count:
            break
        index = source.index(part, counts[part])
        documents += [document for document, _ in rendering.fitted(source.parts[part], index) if document is not None]
        counts = after(counts, part)
    return [collate(chosen) for chosen in _packed(documents, batch_tokens)]


def _packed(documents: Sequence[Document], batch_tokens: int) -> Iterator[list[Document]]:
    chosen: list[Document] = []
    total = 0
    for document in documents:
        if chosen and total + len(document) > batch_tokens:
            yield chosen
            chosen, total = [], 0
        chosen.append(document)
        total += len(document)
    if chosen:
        yield chosen
