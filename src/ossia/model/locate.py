"""From a name to a folder, and from a folder to the files of exactly one model.

Nothing here searches folders recursively: a published repository holds the same model three times (root, `original/`,
`metal/`), and is loaded once.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from ossia.config import Layout
from ossia.errors import CheckpointError
from ossia.files import read_json

DEMO = "demo"
"""The name of the bundled model."""
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
CONFIG = "config.json"
ORIGINAL = "original"
"""Subfolder of a published repository that holds the second layout."""

TOKENIZERS = ("tokenizer.json", "o200k_base.tiktoken")
"""Files that hold a vocabulary."""

_BESIDE = ["tokenizer*.json", "*.tiktoken", "special_tokens_map.json", "chat_template*", "generation_config.json"]
_PAPERS = ["LICENSE*", "NOTICE*", "USAGE_POLICY*", "README.md"]
HUB_PATTERNS: dict[Layout, tuple[list[str], list[str]]] = {
    "hf": (["*.safetensors", INDEX, CONFIG, *_BESIDE, *_PAPERS], ["*/*"]),
    "original": ([f"{ORIGINAL}/*.safetensors", f"{ORIGINAL}/*.json", *_BESIDE, *_PAPERS], ["metal/*"]),
}
"""For each layout the files of a hub repository to fetch, and those to leave although they match."""

_SHARD = re.compile(r"(?P<family>.*?)-+\d{5}-of-\d{5}")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def demo_folder() -> Path:
    """Where the bundled model lies (or would lie)."""
    return Path(__file__).parents[1] / "demo"


def resolve_model(name: str | Path) -> Path:
    """The folder that `name` means: "demo", a directory, or the id of a hub repository that was already downloaded.

    Never reaches for the network. Raises CheckpointError that says what to do when there is no such model.
    """
    if name == DEMO:
        if not (demo_folder() / CONFIG).is_file():
            raise CheckpointError(
                f"the bundled model is not in {demo_folder()}: install ossia with its weights, or name a model folder"
            )
        return demo_folder()
    if os.path.isdir(name):  # noqa: PTH112 - of a name that no file can have, Path.is_dir raises.
        return Path(name)
    if os.path.exists(name):  # noqa: PTH110 - likewise.
        raise CheckpointError(f"{name} is a file: name the folder that holds the model")
    folder = _downloaded(name) if isinstance(name, str) and _HUB_ID.fullmatch(name) else None
    if folder is None:
        raise CheckpointError(
            f"{name} is no folder: give 'demo', a model folder, or a hub id such as openai/gpt-oss-20b"
        )
    return folder


def model_folder(folder: Path) -> Path:
    """`folder` if it holds weights itself, else its `original/` if that does; CheckpointError if neither does."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder")
    for candidate in (folder, folder / ORIGINAL):
        if (candidate / INDEX).is_file() or _weight_files(candidate):
            return candidate
    raise CheckpointError(f"{folder} holds no model: expected {SINGLE}, or {INDEX} with its shards")


def shard_files(folder: Path) -> tuple[tuple[Path, ...], Mapping[str, str] | None]:
    """The files of the one model in `folder`, and the index's map from tensor to file where there is an index.

    Raises CheckpointError if the index is unsound, leaves the folder or names a missing file, or if the folder holds
    two models.
    """
    present = _weight_files(folder)
    index_path = folder / INDEX
    index = _read_index(index_path) if index_path.is_file() else None
    if index is not None:
        names = sorted(set(index.values()))
        for name in names:
            if not (folder / name).is_file():
                raise CheckpointError(f"{index_path}: names {name}, which is not in the folder: fetch it again")
    else:
        families = sorted({_family(name) for name in present})
        if SINGLE in present:
            names = [SINGLE]
        elif len(families) == 1:
            names = [name for name in present if _SHARD.fullmatch(Path(name).stem)] or present
        else:
            raise CheckpointError(
                f"{folder} holds {len(families)} models ({', '.join(families)}): keep one, or add {INDEX}"
            )
    if strays := [name for name in present if name not in names]:  # They would be dropped in silence.
        raise CheckpointError(
            f"{folder} holds two models: {', '.join(strays[:3])} beside {', '.join(names[:3])}: remove one of them"
        )
    return tuple(folder / name for name in names), index


def tokenizer_file(folder: Path) -> Path | None:
    """The vocabulary that belongs to the model in `folder`; that of `original/` lies one folder up."""
    folders = (folder, folder.parent) if folder.name == ORIGINAL else (folder,)
    return next((path for each in folders for name in TOKENIZERS if (path := each / name).is_file()), None)


def _weight_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.safetensors")) if folder.is_dir() else []


def _family(name: str) -> str:
    stem = Path(name).stem
    match = _SHARD.fullmatch(stem)
    return match["family"] if match else stem


def _read_index(path: Path) -> dict[str, str]:
    weight_map: Any = read_json(path, CheckpointError).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path}: has no weight_map from tensor names to files")
    entries = cast(dict[str, Any], weight_map)
    for tensor, name in entries.items():
        # A plain file name and nothing else: an index comes from whoever made the model.
        if not isinstance(name, str) or not name.endswith(".safetensors") or re.search(r"[/\\\0]|^\.\.?$", name):
            raise CheckpointError(
                f"{path}: tensor {tensor} points to {name!r}: only *.safetensors files in the same folder are read"
            )
    return entries


def _downloaded(repository: str) -> Path | None:
    """Where the hub's library keeps it; None if it can be no repository. Raises CheckpointError if it is not there."""
    from huggingface_hub import snapshot_download  # pyright: ignore[reportUnknownVariableType]
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    for allow, ignore in HUB_PATTERNS.values():
        try:
            return Path(
                snapshot_download(repository, local_files_only=True, allow_patterns=allow, ignore_patterns=ignore)
            )
        except HFValidationError:
            return None
        except LocalEntryNotFoundError:
            continue
    raise CheckpointError(
        f"{repository} is no folder, and not downloaded or not wholly: run `ossia pull {repository}` first"
    )
