"""`ossia pull`: fetch one layout of a hub repository. The only command that uses the network."""

import json
import threading
from pathlib import Path
from typing import Any, cast

import click

from ossia.cli.progress import Report, byte_progress
from ossia.config import Layout
from ossia.errors import CheckpointError, OssiaError, StorageError


@click.command("pull")
@click.argument("repository")
@click.option("--layout", type=click.Choice(["hf", "original"]), default="hf", show_default=True)
@click.option(
    "--to", "target", type=click.Path(path_type=Path), help="A folder of your own instead of the hub's cache."
)
@click.option("--revision", help="A branch, tag or commit.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def pull(repository: str, layout: str, target: Path | None, revision: str | None, as_json: bool) -> None:
    """Download REPOSITORY, such as openai/gpt-oss-20b, and check what arrived.

    Fetches one layout only. An interrupted download goes on where it stopped when the command is run again.
    HF_ENDPOINT, HF_HOME and HF_TOKEN are honoured.
    """
    from ossia.model.checkpoint import open_checkpoint
    from ossia.model.locate import ORIGINAL

    with byte_progress(f"pulling {repository}") as report:
        folder = fetch(repository, cast(Layout, layout), target, revision, report)
    if layout == "original":
        folder /= ORIGINAL
    if not any(folder.glob("*.safetensors")):
        other = "hf" if layout == "original" else "original"
        raise _refused(repository, f"it holds no weights in the {layout} layout: try --layout {other}")
    checkpoint = open_checkpoint(folder)
    result: dict[str, Any] = {
        "repository": repository,
        "folder": str(folder),
        "layout": checkpoint.layout,
        "tensors": len(checkpoint.stored),
        "tensor_bytes": checkpoint.num_bytes,
    }
    if as_json:
        click.echo(json.dumps(result))
    else:
        name = repository if target is None and layout == "hf" else folder
        click.echo(
            f"{folder}: {len(checkpoint.stored)} tensors, {checkpoint.num_bytes:,} bytes, layout {checkpoint.layout}; "
            f"talk to it with `ossia chat --model {name}`"
        )


def fetch(repository: str, layout: Layout, target: Path | None, revision: str | None, report: Report) -> Path:
    """Download the files of one layout, resuming what is there. Returns the folder.

    Raises CheckpointError if the repository is unknown, gated, lacks that layout or cannot be reached, and StorageError
    if the disk refuses.
    """
    from huggingface_hub import errors as hub
    from huggingface_hub import snapshot_download  # pyright: ignore[reportUnknownVariableType]

    from ossia.model.locate import HUB_PATTERNS

    transport = hub.HTTPError  # pyright: ignore[reportPrivateImportUsage]  # Root of the errors of its HTTP client.
    allow, ignore = HUB_PATTERNS[layout]
    try:
        folder = snapshot_download(
            repository,
            revision=revision,
            local_dir=target,
            allow_patterns=allow,
            ignore_patterns=ignore,
            tqdm_class=_bar_class(report),
        )
    except hub.GatedRepoError:
        raise _refused(repository, "its owner asks for consent: accept on its page, then set HF_TOKEN") from None
    except hub.RepositoryNotFoundError:
        raise _refused(repository, "no such repository, or a private one: check the name, or set HF_TOKEN") from None
    except hub.RevisionNotFoundError:
        raise _refused(repository, f"it has no revision {revision}: leave --revision out for the latest") from None
    except hub.HFValidationError:
        raise _refused(repository, "that is no repository id: write owner/name") from None
    except hub.HfHubHTTPError as error:
        raise _refused(repository, f"the hub answered {error.response.status_code}: try again later") from None
    except (hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled, transport):
        why = "the hub cannot be reached: check the network and HF_ENDPOINT, then run this again to go on"
        raise _refused(repository, why) from None
    except OSError as error:
        where = target or "the hub's cache"
        raise StorageError(
            f"{where}: the disk refused ({error.strerror or error}): make room, then run this again"
        ) from None
    return Path(folder)


def _refused(repository: str, why: str) -> OssiaError:
    return CheckpointError(f"{repository} cannot be pulled: {why}")


def _bar_class(report: Report) -> type[Any]:
    """A silent stand-in for the hub's progress bars that passes the count of bytes on to ours."""
    from tqdm.auto import tqdm

    lock = threading.Lock()

    class Bar(tqdm):  # type: ignore[type-arg]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.counts_bytes = kwargs.get("unit") == "B"
            super().__init__(*args, **(kwargs | {"disable": True}))

        def update(self, n: float | None = 1) -> None:
            with lock:
                self.n += n or 0
                if self.counts_bytes and self.total:
                    report(int(self.n), int(max(self.total, self.n)))

    return Bar
