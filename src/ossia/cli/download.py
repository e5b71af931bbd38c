"""Fetching one layout of a hub repository, the weights resumed at the byte where they stopped.

The hub's library resumes while it runs, and throws an unfinished file away when it ends. Weights are one file of up to
14 GB, so they are fetched here first, into a partial file that stays, and put where the library looks for them; it then
finds them there and fetches the rest.
"""

import contextlib
import fcntl
import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import errors as hub
from huggingface_hub import (
    get_hf_file_metadata,
    hf_hub_url,
    snapshot_download,  # pyright: ignore[reportUnknownVariableType]
)
from huggingface_hub.file_download import DryRunFileInfo, http_get
from huggingface_hub.utils import build_hf_headers
from tqdm.auto import tqdm

from ossia.cli.progress import Report
from ossia.config import Layout
from ossia.errors import CheckpointError, StorageError
from ossia.model.locate import HUB_PATTERNS

_SHA256 = re.compile(r"[0-9a-f]{64}")
_HTTPError = hub.HTTPError  # pyright: ignore[reportPrivateImportUsage]
"""Root of the errors of the HTTP client that the hub's library uses."""


def fetch(repository: str, layout: Layout, target: Path | None, revision: str | None, report: Report) -> Path:
    """Download the files of one layout to `target`, or to the hub's cache, going on with what is there.

    Returns the folder. Raises CheckpointError if the repository is unknown, gated, cannot be reached or sent damaged
    files, and StorageError if the disk refuses.
    """
    allow, ignore = HUB_PATTERNS[layout]
    wanted: dict[str, Any] = {
        "repo_id": repository,
        "revision": revision,
        "local_dir": target,
        "allow_patterns": allow,
        "ignore_patterns": ignore,
        "tqdm_class": _bar(lambda _: None),
    }
    try:
        # Without a connection the second call says why, or finds that everything is there already.
        with contextlib.suppress(hub.DryRunError):
            _fetch_weights(repository, snapshot_download(**wanted, dry_run=True), target, report)
        return Path(snapshot_download(**wanted))
    except hub.GatedRepoError:
        raise refused(repository, "its owner asks for consent: accept on its page, then set HF_TOKEN") from None
    except hub.RepositoryNotFoundError:
        raise refused(repository, "no such repository, or a private one: check the name, or set HF_TOKEN") from None
    except hub.RevisionNotFoundError:
        raise refused(repository, f"it has no revision {revision}: leave --revision out for the latest") from None
    except hub.HFValidationError:
        raise refused(repository, "that is no repository id: write owner/name") from None
    except hub.HfHubHTTPError as error:
        raise refused(repository, f"the hub answered {error.response.status_code}: try again later") from None
    except (hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled, _HTTPError):
        why = "the hub cannot be reached: check the network and HF_ENDPOINT, then run this again to go on"
        raise refused(repository, why) from None
    except OSError as error:
        if error.errno is None:  # The library's own complaint about a file of another length than announced.
            raise refused(repository, "a file did not arrive whole: run this again to go on") from None
        where = target or "the hub's cache"
        raise StorageError(f"{where}: the disk refused ({error.strerror}): make room, then run this again") from None


def refused(repository: str, why: str) -> CheckpointError:
    """The error of every failed pull."""
    return CheckpointError(f"{repository} cannot be pulled: {why}")


def _fetch_weights(repository: str, files: list[DryRunFileInfo], target: Path | None, report: Report) -> None:
    weights = [file for file in files if file.filename.endswith(".safetensors") and file.will_download]
    total = sum(file.file_size or 0 for file in weights)
    before = 0
    for file in weights:
        begun = before
        _fetch_one(repository, file, target, lambda done, begun=begun: report(begun + done, total))
        before += file.file_size or 0


def _fetch_one(repository: str, file: DryRunFileInfo, target: Path | None, report: Callable[[int], None]) -> None:
    url = hf_hub_url(repository, file.filename, revision=file.commit_hash)
    about = get_hf_file_metadata(url)
    if about.etag is None or not re.fullmatch(r"[\w-]+", about.etag):
        return  # No name to keep it under: left to the library.
    final, part = _places(file, target, about.etag)
    headers = build_hf_headers()
    if urlsplit(about.location).netloc != urlsplit(url).netloc:
        headers.pop("authorization", None)  # The token is for the hub, not for where it keeps its files.
    part.parent.mkdir(parents=True, exist_ok=True)
    with part.open("ab") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise refused(repository, f"another process is fetching {file.filename}") from None
        have = opened.tell()
        http_get(
            about.location,
            opened,
            resume_size=have,
            headers=headers,
            expected_size=about.size,
            displayed_filename=file.filename,
            tqdm_class=_bar(report),
        )
    # A published checksum is the name of the file; without one the headers are still checked after the download.
    if _SHA256.fullmatch(about.etag) and _sha256(part) != about.etag:
        part.unlink()
        raise refused(repository, f"{file.filename} arrived damaged and was removed: run this again")
    final.parent.mkdir(parents=True, exist_ok=True)
    part.replace(final)


def _places(file: DryRunFileInfo, target: Path | None, etag: str) -> tuple[Path, Path]:
    """Where the library looks for a finished file, and where the unfinished one waits."""
    if target is not None:
        return Path(file.local_path), target / ".cache" / "ossia" / f"{etag}.part"
    snapshot = Path(file.local_path.removesuffix(file.filename))
    blobs = snapshot.parent.parent / "blobs"
    return blobs / etag, blobs / f"{etag}.part"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _bar(report: Callable[[int], None]) -> type[Any]:
    """A silent stand-in for the library's progress bars that passes the count of bytes on."""

    class Bar(tqdm):  # type: ignore[type-arg]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **(kwargs | {"disable": True}))

        def update(self, n: float | None = 1) -> None:
            self.n += n or 0
            report(int(self.n))

    return Bar
