"""Records: what files, generators and datasets hold, each to be had by its number.

A record is one JSON object. It holds a conversation (`messages` in OpenAI form and, if need be, `tools`, `effort` and
`date`), a request and its answer (`prompt`, `completion`), or a document (`text`).
"""

import hashlib
import json
import logging
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from ossia.errors import DataError
from ossia.files import parse_json

log = logging.getLogger(__name__)

Record = Mapping[str, Any]
Split = Literal["train", "heldout"]


class Records(Protocol):
    """Numbered records."""

    @property
    def name(self) -> str:
        """What messages call them: the file, or the generator."""
        ...

    @property
    def digest(self) -> str:
        """Hexadecimal sha256 that differs where any record does."""
        ...

    @property
    def count(self) -> int | None:
        """How many there are; None: without end."""
        ...

    def read(self, index: int) -> Record:
        """Record `index`, from 0. Raises DataError, naming the place, where there is none to be read."""
        ...

    def where(self, index: int) -> str:
        """The place of record `index`, for messages."""
        ...


# ---------------------------------------------------------------- files


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecords:
    """Records of a file that is read where they lie, so that it may be larger than memory."""

    path: Path
    digest: str
    starts: "array[int]" = field(repr=False)
    ends: "array[int]" = field(repr=False)
    lines: "array[int]" = field(repr=False)
    """Line on which each record begins, from 1."""

    @property
    def name(self) -> str:
        return str(self.path)

    @property
    def count(self) -> int | None:
        return len(self.starts)

    def where(self, index: int) -> str:
        return f"{self.path}:{self.lines[index]}"

    def read(self, index: int) -> Record:
        start, end = self.starts[index], self.ends[index]
        try:
            with self.path.open("rb") as file:
                file.seek(start)
                content = file.read(end - start)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read ({error.strerror})") from None
        if self.path.suffix == ".jsonl":
            return parse_json(content, self.where(index), DataError)
        try:
            return {"text": content.decode()}
        except UnicodeDecodeError as error:
            raise DataError(f"{self.where(index)}: not UTF-8 text ({error})") from None


def file_records(path: Path) -> FileRecords:
    """Records of a `.jsonl` file, one object a line, or of a `.txt` file.

    In a text file two or more blank lines in a row stand between documents; a single one stays part of its document.
    The file is read once, for its digest and the places of its records. Raises DataError where it cannot be read or
    holds no record.
    """
    if path.suffix not in (".jsonl", ".txt"):
        raise DataError(f"{path}: name a .jsonl or a .txt file, or hf:{path} for other kinds")
    starts, ends, lines = array("q"), array("q"), array("q")
    digest = hashlib.sha256()
    gap = 0 if path.suffix == ".jsonl" else 2  # Blank lines between records.
    blank, offset = gap, 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                digest.update(line)
                if not line.strip():
                    blank += 1
                else:
                    if blank >= gap:
                        starts.append(offset)
                        ends.append(offset)
                        lines.append(number)
                    ends[-1], blank = offset + len(line.rstrip(b"\r\n")), 0
                offset += len(line)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    if not starts:
        wanted = "one JSON object a line" if path.suffix == ".jsonl" else "documents, two blank lines between them"
        raise DataError(f"{path}: holds no record; give {wanted}")
    return FileRecords(path=path, digest=digest.hexdigest(), starts=starts, ends=ends, lines=lines)


# ---------------------------------------------------------------- generators

_ANOTHER_SEED = 1 << 32
_SAMPLED = 8
"""Records of a generator that make its digest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratedRecords:
    """Records made up one by one, without end."""

    name: str
    make: Callable[[int], Record]
    """Index → record, a function of the index alone."""

    @property
    def digest(self) -> str:
        """Of the first records: it tells another seed, and most changes of the generator."""
        first = [self.make(index) for index in range(_SAMPLED)]
        return hashlib.sha256(json.dumps(first, sort_keys=True).encode()).hexdigest()

    @property
    def count(self) -> int | None:
        return None

    def where(self, index: int) -> str:
        return f"{self.name}[{index}]"

    def read(self, index: int) -> Record:
        return self.make(index)


def demo_records(seed: int, split: Split) -> GeneratedRecords:
    """The bundled model's own exercises."""
    from ossia.demo.curriculum.mixture import sample

    def make(index: int) -> Record:
        drawn = sample(seed, index, split=split)
        return {"messages": drawn.messages, "tools": drawn.tools, "effort": drawn.effort, "date": drawn.date}

    return GeneratedRecords(name="demo", make=make)


def demo_texts(seed: int, split: Split) -> GeneratedRecords:
    """The bundled model's texts for pretraining; held-out ones are those of another seed."""
    from ossia.demo.curriculum.texts import text

    start = seed if split == "train" else seed + _ANOTHER_SEED
    return GeneratedRecords(name="demo-text", make=lambda index: {"text": text(start, index)})


# ---------------------------------------------------------------- datasets

_COLUMNS = (("messages", "tools", "effort", "date"), ("prompt", "completion"), ("text",))
"""The columns that are read, of the first kind of record that a dataset has."""
_FORMATS = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json", ".arrow": "arrow", ".txt": "text"}


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetRecords:
    """Rows of a Hugging Face dataset."""

    name: str
    digest: str
    rows: Any = field(repr=False)
    columns: tuple[str, ...]

    @property
    def count(self) -> int | None:
        return len(self.rows)

    def where(self, index: int) -> str:
        return f"{self.name}[{index}]"

    def read(self, index: int) -> Record:
        row = self.rows[index]
        return _present({name: row[name] for name in self.columns})


def dataset_records(spec: str) -> DatasetRecords:
    """Rows of `NAME_OR_PATH[:SPLIT]`: a set of the hub, a folder, or a file (parquet, csv, json, arrow).

    Read are the columns of the first kind there is: messages (with tools, effort, date), prompt and completion, or
    text; others are named in the log and left out. Arrow fills what a row lacks with null, so nulls count as absent,
    also in arguments that are no JSON text. Raises DataError where the extra is missing, nothing is found or no column
    fits.
    """
    try:
        import datasets
        from datasets.exceptions import DatasetsError
    except ModuleNotFoundError:
        raise DataError(f"hf:{spec} needs datasets: install the extra with pip install 'ossia[train]'") from None
    place, _, split = spec.partition(":")
    path = Path(place)
    try:
        if path.is_file():
            if path.suffix not in _FORMATS:
                raise DataError(f"hf:{spec}: a {path.suffix or 'bare'} file; give one of {', '.join(_FORMATS)}")
            rows = datasets.load_dataset(_FORMATS[path.suffix], data_files=place, split=split or "train")
        elif (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            found: Any = datasets.load_from_disk(place)
            rows = found[split or "train"] if isinstance(found, dict) else found
        else:
            rows = datasets.load_dataset(place, split=split or "train")
    except (OSError, ValueError, KeyError, DatasetsError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"hf:{spec}: cannot be loaded ({reason}); name a set, a folder or a file, then :SPLIT"
        ) from None
    present: list[str] = list(rows.column_names)
    kind = next((kind for kind in _COLUMNS if kind[0] in present), None)
    if kind is None:
        raise DataError(f"hf:{spec}: has columns {', '.join(present)}; give messages, prompt and completion, or text")
    if not len(rows):
        raise DataError(f"hf:{spec}: holds no record")
    ignored = [name for name in present if name not in kind]
    if ignored:
        log.info("hf:%s: columns not read: %s", spec, ", ".join(ignored))
    columns = tuple(name for name in kind if name in present)
    digest = hashlib.sha256()
    for row in rows.select_columns(list(columns)):
        digest.update(json.dumps(row, sort_keys=True, default=str).encode())
    return DatasetRecords(name=f"hf:{spec}", digest=digest.hexdigest(), rows=rows, columns=columns)


def _present(value: Any) -> Any:
    """The value without the nulls that Arrow put where a row had nothing."""
    if isinstance(value, dict):
        return {name: _present(each) for name, each in value.items() if each is not None}
    if isinstance(value, list):
        return [_present(each) for each in value]
    return value
