"""`ossia train data`: a look at data before they are learnt."""

import json
from pathlib import Path
from typing import Any

import click
from rich.console import Console


@click.command("data")
@click.argument("specs", metavar="SPEC...", nargs=-1, required=True)
@click.option(
    "--model", "-m", default="demo", show_default=True, help="Whose vocabulary is used: demo, a folder, a hub id."
)
@click.option("--max-length", type=click.IntRange(min=2), default=1024, show_default=True, help="Tokens of a document.")
@click.option(
    "--too-long",
    type=click.Choice(["error", "cut", "drop"]),
    default="cut",
    show_default=True,
    help="What becomes of a longer one.",
)
@click.option("--pretrain", is_flag=True, help="Learn every token, not only what the assistant says.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the order.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def data(specs: tuple[str, ...], model: str, pretrain: bool, seed: int, as_json: bool, **limits: Any) -> None:
    """Say what becomes of the tokens of data, and show the first document as it is learnt.

    SPEC is what --data of a recipe takes: demo, FILE.jsonl, FILE.txt, hf:NAME, each with *WEIGHT to mix several.
    """
    from ossia.errors import CheckpointError
    from ossia.harmony.tokenizer import Tokenizer
    from ossia.model.locate import resolve_model, tokenizer_file
    from ossia.train.data import Rendering, source_of
    from ossia.train.data.preview import account_of, coloured, first_document, table

    folder: Path = resolve_model(model)
    vocabulary = tokenizer_file(folder)
    if vocabulary is None:
        raise CheckpointError(f"{folder}: has no vocabulary: put tokenizer.json into the folder")
    tokenizer = Tokenizer.load(vocabulary)
    source = source_of(specs, seed=seed)
    rendering = Rendering(tokenizer=tokenizer, every_token=pretrain, **limits)
    accounts = account_of(source, rendering)
    if as_json:
        click.echo(json.dumps({name: became.as_dict() for name, became in accounts.items()}))
        return
    console = Console()
    console.print(table(accounts))
    document = first_document(source, rendering)
    if document is not None:
        console.print()
        console.print(coloured(document, tokenizer, marks=not console.is_terminal), soft_wrap=True)
