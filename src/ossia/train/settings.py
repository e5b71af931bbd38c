"""A recipe's settings: one frozen dataclass, whose fields carry their help and their range.

    recipe.toml + flags of the command line → checked settings → settings.toml, which reads back as the same

A field may be an int, float, str, bool or Path, a Literal of strings, a tuple of strings, or one of these or None.
Keys of a recipe are the names of the fields; there are no tables.
"""

import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Self, Union, get_args, get_origin, get_type_hints

from ossia.errors import ConfigError
from ossia.files import write_whole

_MOST = 2**63 - 1
_JSON_TYPES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", Path: "a path as text"}


def flag(
    default: Any = MISSING,
    *,
    help: str,
    group: str = "Run",
    min: float | None = None,
    above: float | None = None,
    max: float | None = None,
    free: bool = False,
) -> Any:
    """A field of a recipe's settings; without a default it must be given.

    `help` is a sentence, `group` the heading under which the command line shows it. A number is at least `min`, above
    `above` and at most `max`. A `free` setting does not decide the course of a run: it may differ on `--resume`.
    """
    about = {"help": help, "group": group, "min": min, "above": above, "max": max, "free": free}
    return field(default=default, metadata=about)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Base of every recipe's settings. Construction raises ConfigError where a value has the wrong type or range.

    What TOML spells otherwise is accepted: a text for a Path, a list for a tuple, a whole number for a float.
    """

    def __post_init__(self) -> None:
        for each in spec(type(self)):
            object.__setattr__(self, each.name, each.checked(getattr(self, each.name)))
        self.check()

    def check(self) -> None:
        """What no single field can tell: a recipe raises ConfigError here for values that contradict one another."""

    @classmethod
    def load(cls, recipe: Path | None = None, flags: Mapping[str, Any] | None = None) -> Self:
        """Settings from a TOML file, over whose values those of `flags` win; None there means not given.

        Raises ConfigError, one line, where the file cannot be read, a key is unknown (naming the nearest), a value has
        the wrong type or range, or one without default is missing.
        """
        values = {} if recipe is None else _read_recipe(cls, recipe)
        values |= {name: value for name, value in (flags or {}).items() if value is not None}
        known = spec(cls)
        _refuse_unknown(values, [each.name for each in known])
        missing = [each for each in known if each.default is MISSING and each.name not in values]
        if missing:
            name = missing[0].name
            raise ConfigError(f"{name} is missing: give {missing[0].option}, or {name} = ... in a recipe")
        return cls(**values)

    def course(self) -> dict[str, Any]:
        """What decides the course of the run, as JSON has it: to be compared when it is resumed."""
        return {name: value for name, value in self.to_json().items() if name not in _free(type(self))}

    def to_json(self) -> dict[str, Any]:
        """All values, in types of JSON."""
        return {each.name: _plain(getattr(self, each.name)) for each in spec(type(self))}

    def to_toml(self) -> str:
        """A recipe that reads back as the same settings; a value that is None stands as a comment."""
        lines: list[str] = []
        for heading, group in groups(type(self)):
            lines += ["", f"# {heading}"] if lines else [f"# {heading}"]
            for each in group:
                value = _plain(getattr(self, each.name))
                lines.append(f"# {each.name} is not set" if value is None else f"{each.name} = {_toml(value)}")
        return "\n".join(lines) + "\n"

    def write(self, path: Path) -> None:
        """Write `to_toml` whole or not at all; raises StorageError where the disk refuses."""
        write_whole(path, self.to_toml())


# -------------------------------------------------------------------- what a field may hold


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One field of a recipe's settings, its type taken apart."""

    name: str
    type: Any
    """int, float, str, bool, Path; for a tuple that of its entries."""
    choices: tuple[str, ...]
    """Of a Literal; empty where any value of the type will do."""
    many: bool
    optional: bool
    default: Any
    """MISSING where it must be given."""
    help: str
    group: str
    min: float | None
    above: float | None
    max: float | None
    free: bool

    @property
    def option(self) -> str:
        """Its name on the command line."""
        return f"--{self.name.replace('_', '-')}"

    def checked(self, value: Any) -> Any:
        """The value in the field's own type; raises ConfigError that names the key and says what to give."""
        if value is None and self.optional:
            return None
        if not self.many:
            return self._checked(value)
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{self.name} is {value!r}: give a list of texts")
        return tuple(self._checked(each) for each in value)

    def _checked(self, value: Any) -> Any:
        if self.type is Path and isinstance(value, str) and value:
            value = Path(value)
        if self.type is float and type(value) is int and abs(value) <= _MOST:
            value = float(value)
        if type(value) is not self.type and not (self.type is Path and isinstance(value, Path)):
            raise ConfigError(f"{self.name} is {_shown(value)}: give {self._expected()}")
        if self.choices and value not in self.choices:
            raise ConfigError(f"{self.name} is {value!r}: give {self._expected()}")
        if isinstance(value, (str, Path)) and not str(value).isprintable():
            raise ConfigError(f"{self.name} is {_shown(value)}: give {self._expected()} of printable characters")
        if isinstance(value, (int, float)) and not self._in_range(value):
            raise ConfigError(f"{self.name} is {_shown(value)}: give {self._expected()}")
        return value

    def _in_range(self, value: float) -> bool:
        return (
            math.isfinite(value)
            and abs(value) <= _MOST
            and (self.min is None or value >= self.min)
            and (self.above is None or value > self.above)
            and (self.max is None or value <= self.max)
        )

    def _expected(self) -> str:
        if self.choices:
            return " or ".join(filter(None, [", ".join(self.choices[:-1]), self.choices[-1]]))
        bounds = [("of at least", self.min), ("above", self.above), ("of at most", self.max)]
        limits = " and ".join(f"{word} {bound:g}" for word, bound in bounds if bound is not None)
        return f"{_JSON_TYPES[self.type]} {limits}".rstrip()


def spec(settings: type[Settings]) -> tuple[Setting, ...]:
    """The fields of a recipe's settings in their order."""
    types = get_type_hints(settings)
    return tuple(_setting(each, types[each.name]) for each in fields(settings))


def groups(settings: type[Settings]) -> list[tuple[str, list[Setting]]]:
    """The fields under their headings, in the order in which each heading first stands."""
    found: dict[str, list[Setting]] = {}
    for each in spec(settings):
        found.setdefault(each.group, []).append(each)
    return list(found.items())


def _setting(declared: "Field[Any]", kind: Any) -> Setting:
    optional = get_origin(kind) in (Union, UnionType) and NoneType in get_args(kind)
    if optional:
        (kind,) = (each for each in get_args(kind) if each is not NoneType)
    many = get_origin(kind) in (tuple, list)
    if many:
        kind = get_args(kind)[0]
    choices: tuple[str, ...] = get_args(kind) if get_origin(kind) is Literal else ()
    return Setting(
        name=declared.name,
        type=str if choices else kind,
        choices=choices,
        many=many,
        optional=optional,
        default=declared.default,
        **declared.metadata,
    )


def _free(settings: type[Settings]) -> set[str]:
    return {each.name for each in spec(settings) if each.free}


# -------------------------------------------------------------------- TOML


def _read_recipe(settings: type[Settings], recipe: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(recipe.read_bytes().decode())
    except OSError as error:
        raise ConfigError(f"{recipe}: cannot be read ({error.strerror}): give the path of a recipe in TOML") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{recipe}: not valid TOML ({error}): mend the file") from None
    known = {each.name: each for each in spec(settings)}
    try:
        _refuse_unknown(values, known)
        return {name: known[name].checked(value) for name, value in values.items()}
    except ConfigError as error:
        raise ConfigError(f"{recipe}: {error}") from None


def _refuse_unknown(values: Mapping[str, Any], known: Iterable[str]) -> None:
    for name in values:
        if name not in known:
            nearest = get_close_matches(name, known, 1)
            advice = f"did you mean {nearest[0]}?" if nearest else f"give some of {', '.join(known)}"
            raise ConfigError(f"unknown key {name}: {advice}")


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, str):  # Printable, so that these two are all there is to escape.
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    return repr(value)


def _shown(value: Any) -> str:
    """A value as a message may show it: not a whole table, nor a number of thousands of digits."""
    kinds = {dict: "a table", list: "a list"}
    if type(value) in kinds:
        return kinds[type(value)]
    if isinstance(value, int) and abs(value) > _MOST:
        return "beyond 64 bits"
    return repr(str(value) if isinstance(value, Path) else value)
