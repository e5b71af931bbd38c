"""`ossia pull`: fetch one layout of a hub repository. The only command that uses the network."""

import json
from pathlib import Path
from typing import Any, cast

import click

from ossia.cli.progress import byte_progress
from ossia.config import Layout


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
    from ossia.cli.download import fetch, refused
    from ossia.model.locate import ORIGINAL

    with byte_progress(f"pulling {repository}") as report:
        folder = fetch(repository, cast(Layout, layout), target, revision, report)
    if layout == "original":
        folder /= ORIGINAL
    if not any(folder.glob("*.safetensors")):
        other = "hf" if layout == "original" else "original"
        raise refused(repository, f"it holds no weights in the {layout} layout: try --layout {other}")
    from ossia.model.checkpoint import open_checkpoint  # Only now: it takes torch, and errors above are quick without.

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
