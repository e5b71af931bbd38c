"""The header of a safetensors file: read with every length checked before use, and written.

A file is eight bytes of header length (little-endian), that many bytes of JSON (tensor name → type, shape, first and
last byte), then the tensors' bytes without gap. Format: https://github.com/huggingface/safetensors.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from ossia.errors import CheckpointError
from ossia.files import parse_json

DTYPES: dict[str, torch.dtype] = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}

_LENGTH_BYTES = 8
_LARGEST_HEADER = 100_000_000
"""Bytes; the safetensors library refuses longer ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """Type and shape of a tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of its values."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{DTYPE_NAMES[self.dtype]} {list(self.shape)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a file says it holds; `offsets` count from the start of the file, in bytes."""

    specs: Mapping[str, TensorSpec]
    offsets: Mapping[str, int]
    metadata: Mapping[str, str]
    """Words beside the tensors; whatever in there is no text is left out."""


def read_header(path: Path) -> Header:
    """Read and check the header of `path` without touching its tensors.

    Raises CheckpointError that names the file, and the tensor where there is one, if a length, a type, a shape or an
    offset is wrong, if tensors overlap or leave a hole, or if the file is shorter or longer than its header says.
    """
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            if size < _LENGTH_BYTES:
                raise CheckpointError(f"{path}: {size} bytes are too few for a safetensors file: fetch it again")
            if length > min(size - _LENGTH_BYTES, _LARGEST_HEADER):
                raise CheckpointError(
                    f"{path}: the header claims {length:,} bytes in a file of {size:,}: truncated or not a safetensors "
                    "file, so fetch it again"
                )
            text = file.read(length)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    entries: dict[str, Any] = parse_json(text, f"{path}: the header", CheckpointError)
    metadata = entries.pop("__metadata__", None)
    return _checked(path, entries, metadata, start=_LENGTH_BYTES + length, size=size)


def encode_header(
    tensors: Sequence[tuple[str, TensorSpec]], *, metadata: Mapping[str, str] | None = None, alignment: int = 8
) -> bytes:
    """The bytes that open a file whose tensors follow in this order; their number is a multiple of `alignment`.

    metadata: words beside the tensors (default: what PyTorch's readers look for).
    """
    entries: dict[str, Any] = {"__metadata__": dict(metadata or {"format": "pt"})}
    offset = 0
    for name, spec in tensors:
        end = offset + spec.num_bytes
        entries[name] = {
            "dtype": DTYPE_NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(_LENGTH_BYTES + len(text)) % alignment)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text


def _checked(path: Path, entries: dict[str, Any], metadata: Any, *, start: int, size: int) -> Header:
    spans: list[tuple[int, int, str]] = []
    specs: dict[str, TensorSpec] = {}
    for name, entry in entries.items():
        spec, begin, end = _entry(path, name, entry)
        specs[name] = spec
        spans.append((begin, end, name))
    spans.sort()
    reached = 0
    for begin, end, name in spans:
        if begin != reached:
            what = "overlaps the tensor before it" if begin < reached else f"leaves a hole of {begin - reached:,} bytes"
            raise CheckpointError(f"{path}: tensor {name} {what}: the header is damaged, fetch the file again")
        reached = end
    if start + reached > size:
        past = next(name for _, end, name in spans if start + end > size)
        raise CheckpointError(
            f"{path}: tensor {past} ends past the file, which has {size:,} bytes of {start + reached:,}: truncated, "
            "fetch it again"
        )
    if start + reached < size:
        raise CheckpointError(
            f"{path}: {size - start - reached:,} bytes belong to no tensor: the file is damaged, fetch it again"
        )
    words = cast(dict[str, Any], metadata) if isinstance(metadata, dict) else {}
    return Header(
        specs=specs,
        offsets={name: start + begin for begin, _, name in spans},
        metadata={name: text for name, text in words.items() if isinstance(text, str)},
    )


def _entry(path: Path, name: str, entry: Any) -> tuple[TensorSpec, int, int]:
    wrong = CheckpointError(f"{path}: tensor {name} has no sound dtype, shape and data_offsets in the header")
    if not isinstance(entry, dict):
        raise wrong
    fields = cast(dict[str, Any], entry)
    shape, offsets = _counts(fields.get("shape")), _counts(fields.get("data_offsets"))
    if shape is None or offsets is None or len(offsets) != 2:
        raise wrong
    if not isinstance(fields.get("dtype"), str) or fields["dtype"] not in DTYPES:
        raise CheckpointError(f"{path}: tensor {name} has type {fields.get('dtype')!r}, which gpt-oss does not use")
    spec = TensorSpec(dtype=DTYPES[fields["dtype"]], shape=shape)
    if offsets[1] - offsets[0] != spec.num_bytes:
        raise CheckpointError(
            f"{path}: tensor {name} is {spec}, so {spec.num_bytes:,} bytes, but its offsets span "
            f"{offsets[1] - offsets[0]:,}: the header is damaged, fetch the file again"
        )
    return spec, offsets[0], offsets[1]


def _counts(value: Any) -> tuple[int, ...] | None:
    if not isinstance(value, list):
        return None
    items = cast(list[Any], value)
    if any(isinstance(item, bool) or not isinstance(item, int) or item < 0 for item in items):
        return None
    return tuple(items)
