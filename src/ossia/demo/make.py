"""The bundled model from nothing: pretraining, supervised training in two runs, reinforcement, measurement, card.

    python -m ossia.demo.make OUT [--install]

Each stage is a command of `ossia` with a recipe of this folder, run in a folder of OUT. A stage that is done is not
done again and one that was broken off goes on from its last saved state, so the same command may be given as often as
need be. OUT/model is what ships; `--install` puts it in the place of the model that is bundled.
"""

import argparse
import json
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from ossia.demo.card import write_card
from ossia.errors import TrainingError
from ossia.files import write_whole

RECIPES = Path(__file__).with_name("recipes")
BUNDLED = Path(__file__).parent
FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json")


@dataclass(frozen=True, slots=True)
class Stage:
    """A folder of OUT, and how it comes about: NAME.toml in this folder's recipes has the settings."""

    name: str
    recipe: str
    after: str | None
    """The stage whose result it starts from."""

    def command(self, out: Path) -> list[str]:
        """The arguments of `ossia` that run it, or go on with it."""
        folder = out / self.name
        words = ["train", self.recipe, str(RECIPES / f"{self.name}.toml"), "--out", str(folder)]
        if self.after:
            words += ["--model", str(out / self.after)]
        if any((folder / "run" / "states").glob("step-*")):
            words.append("--resume")
        return words


STAGES = (
    Stage("pretrain", "pretrain", None),
    Stage("sft", "sft", "pretrain"),
    Stage("anneal", "sft", "sft"),
    Stage("rl", "rl", "anneal"),
)
MEASURED = (("all", ["--count", "100"]), ("calls", ["--family", "tool_call", "--count", "1000"]))
"""Measurement → arguments of `ossia eval`."""


def make(out: Path) -> Path:
    """Run what is not yet done of the stages; returns the folder of the finished model, card and curve included.

    Raises TrainingError where a stage fails, with the command that failed; what it says itself is on standard error.
    """
    for stage in STAGES:
        if not (out / stage.name / "config.json").exists():
            ossia(stage.command(out))
    last = out / STAGES[-1].name
    for name, arguments in MEASURED:
        measured = out / f"{name}.json"
        if not measured.exists():
            write_whole(measured, ossia(["eval", "--model", str(last), "--json", *arguments], captured=True))
    folder = out / "model"
    folder.mkdir(exist_ok=True)
    for name in FILES:
        write_whole(folder / name, (last / name).read_bytes())
    runs = {stage.name: out / stage.name / "run" for stage in STAGES}
    write_card(folder, runs, {name: json.loads((out / f"{name}.json").read_text()) for name, _ in MEASURED})
    return folder


def ossia(arguments: list[str], *, captured: bool = False) -> str:
    """Run a command of `ossia` in a process of its own; returns what it printed where that is to be captured."""
    print("ossia", shlex.join(arguments), file=sys.stderr, flush=True)
    done = subprocess.run(
        [sys.executable, "-m", "ossia", *arguments],
        stdout=subprocess.PIPE if captured else None,
        text=True,
        check=False,
    )
    if done.returncode:
        raise TrainingError(
            f"ossia {shlex.join(arguments)} ended with {done.returncode}: see above; then run this again"
        )
    return done.stdout or ""


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m ossia.demo.make", description="Make the bundled model anew.")
    parser.add_argument("out", type=Path, help="folder of all stages; the finished model is OUT/model")
    parser.add_argument("--install", action="store_true", help="put it in the place of the bundled one")
    arguments = parser.parse_args()
    try:
        folder = make(arguments.out)
    except TrainingError as error:
        sys.exit(str(error))
    if arguments.install:
        for path in sorted(folder.iterdir()):
            write_whole(BUNDLED / path.name, path.read_bytes())
    print(f"model: {BUNDLED if arguments.install else folder}")


if __name__ == "__main__":
    main()
