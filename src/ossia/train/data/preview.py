"""A look at data before they are learnt: what becomes of the tokens, and one document with its mask."""

from itertools import groupby

from rich.table import Table
from rich.text import Text

from ossia.harmony.tokenizer import Tokenizer
from ossia.train.data.accounting import Accounting
from ossia.train.data.feed import account
from ossia.train.data.packing import Document
from ossia.train.data.rendering import Rendering
from ossia.train.data.sources import Source

_LEARNT, _MASKED = "green", "dim"
_OPEN, _CLOSE = "⟦", "⟧"


def account_of(source: Source, rendering: Rendering, *, records: int = 1000) -> dict[str, Accounting]:
    """What becomes of the tokens of each part by its name: of all records, or of the first ones where it is endless.

    Raises DataError as training would.
    """
    return {part.name: account(part, rendering, part.count or records) for part in source.parts}


def table(accounts: dict[str, Accounting]) -> Table:
    """The accounts as a table, a column for each part."""
    out = Table(box=None, header_style="bold")
    out.add_column("")
    for name in accounts:
        out.add_column(name, justify="right", overflow="fold")
    for count in Accounting().as_dict():
        label = count.replace("_", " ")
        out.add_row(label, *(f"{became.as_dict()[count]:,}" for became in accounts.values()))
    return out


def first_document(source: Source, rendering: Rendering) -> Document | None:
    """The first document that training would see, of the record that comes first; None where all of it is dropped."""
    part = source.turn(tuple(0 for _ in source.parts))
    fitted = rendering.fitted(source.parts[part], source.index(part, 0))
    return next((document for document, _ in fitted if document is not None), None)


def coloured(document: Document, tokenizer: Tokenizer, *, marks: bool = False) -> Text:
    """The text of a document: what is learnt in green, the rest dim, special tokens in bold.

    With `marks`, for places without colours, what is learnt stands between ⟦ and ⟧.
    """
    out = Text()
    tokens = zip(document.token_ids, document.learn, strict=True)
    for learnt, run in groupby(tokens, key=lambda token: token[1]):
        style = _LEARNT if learnt else _MASKED
        out.append(_OPEN if marks and learnt else "")
        ids = [token for token, _ in run]
        for special, piece in groupby(ids, key=tokenizer.special_ids.__contains__):
            out.append(tokenizer.decode(piece), f"bold {style}" if special else style)
        out.append(_CLOSE if marks and learnt else "")
    return out
