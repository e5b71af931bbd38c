"""A recipe's settings are one frozen dataclass, whose fields carry the help of the command line made from them."""

from dataclasses import MISSING, field
from typing import Any


def flag(default: Any = MISSING, *, help: str) -> Any:
    """A field of a recipe's settings; without a default it must be given."""
    return field(default=default, metadata={"help": help})
