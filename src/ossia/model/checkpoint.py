"""Reading a checkpoint of either published layout, memory-mapped, under the names the model uses.

Everything that can be wrong with the files is found from their headers before a single value is read, and every tensor
must be expected and every expected tensor be there.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from ossia.config import Layout, ModelConfig
from ossia.errors import CheckpointError
from ossia.model.layouts import Stored, guess_layout, guess_packed, parameter_shapes, stored_tensors
from ossia.model.locate import CONFIG, model_folder, shard_files
from ossia.model.mapping import MappedFile
from ossia.model.safetensors_header import DTYPE_NAMES, Header, TensorSpec, read_header

_NAMES_SHOWN = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint on disk whose headers were checked. It is also a read-only mapping from parameter name to tensor."""

    folder: Path
    """Where the files are; `original/` itself where that was loaded."""
    layout: Layout
    config: ModelConfig
    packed: bool
    """Whether the experts are in MXFP4 (else BF16)."""
    specs: Mapping[str, TensorSpec]
    """Type and shape of every parameter, in reading order."""
    stored: Mapping[str, TensorSpec]
    """The same for the tensors as the files name them."""
    files: Mapping[str, Path]
    """The file of every stored tensor."""
    sources: Mapping[str, tuple[Stored, int]]
    """For every parameter the stored tensor that holds it, and its first row in there."""
    _mapped: dict[Path, tuple[MappedFile, Header]] = field(
        default_factory=dict[Path, tuple[MappedFile, Header]], repr=False, compare=False
    )

    @property
    def num_bytes(self) -> int:
        """Bytes of all stored tensors."""
        return sum(spec.num_bytes for spec in self.stored.values())

    def tensor(self, name: str) -> torch.Tensor:
        """The parameter `name` in its stored type, as a view of the mapped file: no byte is read before it is used.

        Expert weights of the HF layout in BF16 come as a transposed view, which is not contiguous. Raises
        CheckpointError if there is no such parameter, or if the file has changed or vanished since it was opened.
        """
        if name not in self.sources:
            raise CheckpointError(f"{self.folder}: has no parameter {name}")
        stored, row = self.sources[name]
        mapped, header = self._map(stored.name)
        whole = mapped.tensor(header.specs[stored.name], header.offsets[stored.name])
        if stored.kind == "rows":
            return whole[row : row + self.specs[name].shape[0]]
        return whole.transpose(-1, -2) if stored.kind == "dense_transposed" else whole

    def forget(self, name: str) -> None:
        """Give back the memory in which the parameter `name` was read: a copy was made, and it is not needed again."""
        stored, row = self.sources[name]
        mapped, header = self._map(stored.name)
        spec = self.specs[name]
        begin = row * spec.num_bytes // spec.shape[0]
        mapped.forget(header.offsets[stored.name] + begin, spec.num_bytes)

    def _map(self, stored: str) -> tuple[MappedFile, Header]:
        """The file of a stored tensor, mapped, if it still is the one that was opened."""
        path = self.files[stored]
        if path not in self._mapped:
            try:
                mapped = MappedFile(path)
            except (OSError, ValueError) as error:
                raise CheckpointError(f"{path}: tensor {stored} cannot be read ({error})") from None
            header = read_header(path)
            if any(header.specs.get(name) != spec for name, spec in self.stored.items() if self.files[name] == path):
                raise CheckpointError(f"{path}: holds other tensors than when it was opened: load the model again")
            self._mapped[path] = mapped, header
        return self._mapped[path]

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every parameter in reading order."""
        return ((name, self.tensor(name)) for name in self.specs)

    def keys(self) -> Iterable[str]:
        """The names of all parameters."""
        return self.specs.keys()

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.tensor(name)


def open_checkpoint(folder: str | Path) -> Checkpoint:
    """Open the model in `folder`, of either layout, sharded or not, experts in MXFP4 or BF16.

    A folder that holds both layouts is loaded once, from its root; one that holds only `original/` from there. Raises
    ConfigError for config.json, and CheckpointError, naming file and tensor, for anything wrong with the others.
    """
    folder = model_folder(Path(folder))
    config_path = folder / CONFIG
    if not config_path.is_file():
        raise CheckpointError(f"{config_path} is missing: a model folder holds one beside its weights")
    config = ModelConfig.from_json(config_path)
    stored, files = _read_headers(*shard_files(folder))
    layout, packed = guess_layout(set(stored)), guess_packed(set(stored))
    if layout == "original":
        config = replace(config, mxfp4_experts=packed)  # The original dialect does not say.
    elif config.mxfp4_experts != packed:
        has, are = ("has no", "packed in MXFP4") if packed else ("has a", "not packed")
        raise CheckpointError(f"{config_path}: {has} quantization_config, but the experts in the files are {are}")
    expected = stored_tensors(config, layout, packed=packed)
    _compare(folder, expected, stored)
    shapes = parameter_shapes(config, packed=packed)
    sources = dict(_sources(expected, shapes))
    specs = {name: TensorSpec(dtype=stored[sources[name][0].name].dtype, shape=shape) for name, shape in shapes.items()}
    return Checkpoint(
        folder=folder,
        layout=layout,
        config=config,
        packed=packed,
        specs=specs,
        stored={want.name: stored[want.name] for want in expected},
        files=files,
        sources=sources,
    )


def _read_headers(
    paths: Sequence[Path], index: Mapping[str, str] | None
) -> tuple[dict[str, TensorSpec], dict[str, Path]]:
    stored: dict[str, TensorSpec] = {}
    files: dict[str, Path] = {}
    for path in paths:
        for name, spec in read_header(path).specs.items():
            if name in stored:
                raise CheckpointError(f"{path}: tensor {name} is in {files[name].name} too: remove the leftover")
            stored[name], files[name] = spec, path
    if index is not None:
        claimed = [f"{name} in {file}" for name, file in index.items()]
        held = [f"{name} in {path.name}" for name, path in files.items()]
        compare_names(f"{paths[0].parent}: the shards hold other tensors than the index lists", claimed, held)
    return stored, files


def compare_names(what: str, expected: Collection[str], found: Collection[str], *others: str) -> None:
    """Raise one CheckpointError that begins with `what` and shows both sides, unless `expected` and `found` hold the
    same names. `others` are further complaints to show along with them; empty ones do not count."""
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    parts = [part for part in (listed(missing, "missing"), listed(unexpected, "unexpected"), *others) if part]
    if parts:
        raise CheckpointError(f"{what}: {'; '.join(parts)}")


def listed(names: Sequence[str], what: str) -> str:
    """ "5 missing (a, b, c, d, …)", or nothing if there are no names."""
    if not names:
        return ""
    more = ", …" if len(names) > _NAMES_SHOWN else ""
    return f"{len(names)} {what} ({', '.join(names[:_NAMES_SHOWN])}{more})"


def _compare(folder: Path, expected: Sequence[Stored], stored: Mapping[str, TensorSpec]) -> None:
    shapes: list[str] = []
    types: list[str] = []
    for want in expected:
        found = stored.get(want.name)
        if found is not None and found.shape != want.shape:
            shapes.append(f"{want.name} {list(found.shape)} instead of {list(want.shape)}")
        elif found is not None and found.dtype not in want.dtypes:
            wanted = " or ".join(DTYPE_NAMES[dtype] for dtype in want.dtypes)
            types.append(f"{want.name} {DTYPE_NAMES[found.dtype]} instead of {wanted}")
    compare_names(
        f"{folder}: the tensors are not those that config.json describes",
        dict.fromkeys(want.name for want in expected),
        stored.keys(),
        listed(shapes, "of another shape"),
        listed(types, "of another type"),
    )


def _sources(
    expected: Sequence[Stored], shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, tuple[Stored, int]]]:
    for stored in expected:
        row = 0
        for parameter in stored.parameters:
            yield parameter, (stored, row)
            row += shapes[parameter][0]
