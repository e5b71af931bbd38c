"""`ossia merge`: an adapter made part of the model it was trained on."""

import json
from pathlib import Path
from typing import Any

import click


@click.command("merge")
@click.argument("adapter", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--model", "-m", default="demo", show_default=True, help="The model that the adapter was trained on.")
@click.option("--to", type=click.Choice(["mxfp4", "bf16"]), help="How experts are stored.  [default: as in the model]")
@click.option("--force", is_flag=True, help="Replace the model that is already in OUT.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def merge(adapter: Path, out: Path, model: str, to: str | None, force: bool, as_json: bool) -> None:
    """Write to OUT the model with the adapter in the folder ADAPTER merged into its weights.

    Experts that stay in MXFP4 are packed anew only where the adapter changes them; how many codes that changed, and how
    much of the adapter four bits keep, is told.
    """
    from ossia.cli.progress import byte_progress
    from ossia.model.adapters import check_base, read_adapter
    from ossia.model.checkpoint import open_checkpoint
    from ossia.model.locate import resolve_model
    from ossia.model.merge import Merged
    from ossia.release.export import export_layout

    checkpoint = open_checkpoint(resolve_model(model))
    change = read_adapter(adapter, checkpoint.config)
    check_base(change, checkpoint, str(adapter))
    packed = checkpoint.packed if to is None else to == "mxfp4"
    merged = Merged(checkpoint, change, packed=packed)
    with byte_progress(f"merging into {out}") as report:
        written = export_layout(checkpoint, out, "hf", tensors=merged, packed=packed, overwrite=force, progress=report)
    done = merged.repacked
    result: dict[str, Any] = {
        "path": str(out),
        "to": "mxfp4" if packed else "bf16",
        "weights": len(change.changes),
        "bytes": written.num_bytes,
        "repacked_matrices": done.matrices,
        "codes": done.codes,
        "codes_changed": done.changed,
        "kept": round(done.kept, 4) if done.codes else None,
        "notes": list(written.notes),
    }
    if as_json:
        click.echo(json.dumps(result))
        return
    click.echo(f"{out}: {len(change.changes)} weights changed, {written.num_bytes:,} bytes")
    if done.codes:
        click.echo(
            f"experts packed anew: {done.matrices} matrices; {done.changed:,} of {done.codes:,} codes changed "
            f"({done.changed / done.codes:.1%}), which keeps {done.kept:.1%} of the adapter"
        )
    for note in written.notes:
        click.echo(f"note: {note}")
