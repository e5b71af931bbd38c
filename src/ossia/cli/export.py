"""`ossia export`: the same weights for llama.cpp, transformers and vLLM."""

import json
from pathlib import Path
from typing import Any, cast

import click

_FORMATS = {"gguf": "llama.cpp", "hf": "transformers and vLLM", "original": "the reference code"}
"""What each format is for."""


@click.command("export")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--model", default="demo", show_default=True, help='"demo", a model folder, or a hub id already pulled.')
@click.option("--to", "to", type=click.Choice(list(_FORMATS)), required=True, help="The format.")
@click.option(
    "--dense",
    type=click.Choice(["q8_0", "bf16", "f16"]),
    help="gguf only: type of the weights outside the experts.  [default: q8_0]",
)
@click.option("--force", is_flag=True, help="Replace what is already there.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def export(out: Path, model: str, to: str, dense: str | None, force: bool, as_json: bool) -> None:
    """Write a model to OUT, a file for gguf and a folder for hf and original.

    MXFP4 experts are repacked and keep every value. The vocabulary and a chat template go along.
    """
    if dense and to != "gguf":
        raise click.UsageError(f"--dense goes with --to gguf: the {to} layout has one type for these weights")

    from ossia.cli.progress import byte_progress
    from ossia.config import Layout
    from ossia.model.checkpoint import open_checkpoint
    from ossia.model.locate import resolve_model
    from ossia.release.export import Dense, export_gguf, export_layout

    checkpoint = open_checkpoint(resolve_model(model))
    with byte_progress(f"exporting {out}") as report:
        if to == "gguf":
            written = export_gguf(
                checkpoint,
                out,
                name=Path(model).name,
                dense=cast(Dense, dense or "q8_0"),
                overwrite=force,
                progress=report,
            )
        else:
            written = export_layout(checkpoint, out, cast(Layout, to), overwrite=force, progress=report)
    result: dict[str, Any] = {
        "path": str(out),
        "to": to,
        "tensors": written.num_tensors,
        "bytes": written.num_bytes,
        "notes": list(written.notes),
    }
    if as_json:
        click.echo(json.dumps(result))
        return
    click.echo(f"{out}: {written.num_tensors} tensors, {written.num_bytes:,} bytes, for {_FORMATS[to]}")
    for note in written.notes:
        click.echo(f"note: {note}")
