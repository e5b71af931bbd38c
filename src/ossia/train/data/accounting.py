"""What became of every token of the data."""

from dataclasses import asdict, dataclass, fields
from typing import Self


@dataclass(frozen=True, slots=True, kw_only=True)
class Accounting:
    """Counts that add up: rendered + repeated = kept + cut + dropped, and kept = learnt + masked. All in tokens but
    for the records and the documents."""

    records: int = 0
    documents: int = 0
    """What a batch holds: assistant turns and texts, the pieces of a divided one counted one by one."""
    rendered: int = 0
    repeated: int = 0
    """Where a text is divided the last token of a piece opens the next one, so that each is learnt but the first."""
    kept: int = 0
    learnt: int = 0
    masked: int = 0
    """Kept as context, not to be learnt."""
    cut: int = 0
    cut_documents: int = 0
    dropped: int = 0
    dropped_documents: int = 0

    def __add__(self, other: Self) -> "Accounting":
        return Accounting(**{each.name: getattr(self, each.name) + getattr(other, each.name) for each in fields(self)})

    def as_dict(self) -> dict[str, int]:
        """The counts by name, as a log keeps them."""
        return asdict(self)
