"""`ossia train`: the recipes, and what helps before and after a run; each is imported when it is asked for."""

from importlib import import_module
from pathlib import Path

import click

RECIPES: dict[str, tuple[str, str, str]] = {
    "pretrain": ("pretrain", "PretrainSettings", "Learn every token of texts or conversations."),
    "sft": ("sft", "SftSettings", "Learn what the assistant says in conversations."),
    "lora": ("lora", "LoraSettings", "Learn adapters beside frozen, packed weights."),
    "rl": ("rl.recipe", "RlSettings", "Learn from verifiable rewards."),
}
"""Name → module under `ossia.train`, its settings, and what to say of it. The module's `train` runs it."""

OTHERS: dict[str, tuple[str, str]] = {
    "launch": ("launch:launch", "The same run in many processes, on one machine or several."),
    "plan": ("plan:plan", "What a run would take on GPUs, before it is started."),
    "data": ("data:data", "What becomes of data, and one document as it is learnt."),
    "report": ("train:report", "Write the report of a run anew."),
}
"""Name → module under `ossia.cli` and its command, and what to say of it."""


class _Train(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*RECIPES, *OTHERS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in RECIPES:
            from ossia.cli.recipe import RecipeCommand

            module, settings, about = RECIPES[cmd_name]
            recipe = import_module(f"ossia.train.{module}")
            return RecipeCommand(cmd_name, getattr(recipe, settings), recipe.train, about)
        if cmd_name in OTHERS:
            module, attribute = OTHERS[cmd_name][0].split(":")
            return getattr(import_module(f"ossia.cli.{module}"), attribute)
        return None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Recipes"):
            formatter.write_dl([(name, text) for name, (_, _, text) in RECIPES.items()])
        with formatter.section("Before and after"):
            formatter.write_dl([(name, text) for name, (_, text) in OTHERS.items()])


@click.group("train", cls=_Train)
def train() -> None:
    """Train a model.

    Begin with: ossia train sft --model demo --data conversations.jsonl --out mine
    """


@click.command("report")
@click.argument("out", type=click.Path(path_type=Path))
def report(out: Path) -> None:
    """Write the report of the run in the folder OUT, finished or not, and print its place."""
    from ossia.train.report import write_report

    click.echo(write_report(out))
