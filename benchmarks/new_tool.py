"""A tool that the bundled model has never seen, taught by SFT and by LoRA: what is gained, and what is lost elsewhere.

    python benchmarks/new_tool.py --out FOLDER [--model demo] [--conversations 2000] [--count 100]

Measures the model as it is; trains it on the conversations with its own curriculum mixed in; trains an adapter on the
same; merges the adapter into MXFP4. Each of the four answers the same held-out requests for the tool and the same
held-out prompts of every family of the curriculum, at temperature 0. A step that is done is not done again.

Prints a table, and ends with one JSON line.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean
from typing import Any

import ossia
from ossia.demo.curriculum.mixture import FAMILIES
from ossia.demo.new_tool import FAMILY, conversation, write
from ossia.evals.heldout import ask, draw
from ossia.llm import LLM

MODELS = ("base", "sft", "lora", "merged")
REPLAY = 1.5
"""Conversations of the curriculum for each with the tool."""
COMMON = ["--optimizer", "adamw", "--batch-tokens", "4096", "--warmup-steps", "20", "--save-every", "1000"]
RECIPES = {
    "sft": ["--learning-rate", "1e-3", "--decay-steps", "150"],
    "lora": ["--learning-rate", "4e-3", "--decay-steps", "150", "--rank", "16", "--alpha", "32"],
}


def command(*words: str | Path) -> float:
    """Run a command of `ossia`; returns the seconds it took. Stops here where it fails."""
    print("ossia", *words, file=sys.stderr, flush=True)
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "ossia", *map(str, words)], check=True, stdout=sys.stderr)
    return time.perf_counter() - start


def train(recipe: str, model: str, data: Path, out: Path, steps: int, threads: int) -> dict[str, Any]:
    """Train in `out` unless that was done; returns what it took."""
    told = out / "took.json"
    if not told.exists():
        seconds = command(
            "train", recipe, "--model", model, "--out", out, "--data", data, "--data", f"demo*{REPLAY}",
            "--steps", str(steps), "--threads", str(threads), *COMMON, *RECIPES[recipe],
        )  # fmt: skip
        told.write_text(json.dumps({"seconds": seconds}))
    return json.loads(told.read_text())


def measure(llm: LLM, count: int, requests: int, adapter: str | None = None) -> dict[str, float]:
    """Part of right answers for the tool and for each family; prompts are a function of the counts alone."""
    samples = [conversation(7, index, "heldout") for index in range(requests)]
    samples += [one for family in FAMILIES for one in draw(family, count, seed=1)]
    return {result.family: result.accuracy for result in ask(llm, samples, max_tokens=768, adapter=adapter)}


def main() -> None:
    """Measure, train, measure again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--conversations", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--count", type=int, default=100, help="prompts of each family")
    parser.add_argument("--requests", type=int, default=300, help="held-out requests for the tool")
    parser.add_argument("--threads", type=int, default=1)
    told = parser.parse_args()

    data, _ = write(told.out / "data", count=told.conversations)
    took = {name: train(name, told.model, data, told.out / name, told.steps, told.threads) for name in RECIPES}
    if not (told.out / "merged").exists():
        command("merge", told.out / "lora", told.out / "merged", "--model", told.model)

    measured: dict[str, dict[str, float]] = {}
    for name in MODELS:
        kept = told.out / f"{name}.json"
        if not kept.exists():
            adapters = {"lora": told.out / "lora"} if name == "lora" else {}
            folder = told.model if name in ("base", "lora") else told.out / name
            llm = ossia.load(folder, adapters=adapters)
            adapter = "lora" if adapters else None
            kept.write_text(json.dumps(measure(llm, told.count, told.requests, adapter)))
        measured[name] = json.loads(kept.read_text())

    print(f"{'':18}", *(f"{name:>8}" for name in MODELS))
    for family in measured["base"]:
        print(f"{family:18}", *(f"{measured[name][family]:8.1%}" for name in MODELS))
    old = {name: mean(value for family, value in row.items() if family != FAMILY) for name, row in measured.items()}
    print(f"{'mean of the old':18}", *(f"{old[name]:8.1%}" for name in MODELS))
    print("minutes of training:", ", ".join(f"{name} {entry['seconds'] / 60:.1f}" for name, entry in took.items()))
    print(json.dumps({"measured": measured, "mean_of_old": old, "took": took}))


if __name__ == "__main__":
    main()
