"""What reinforcement learning does for one family of problems: held-out pass@1 and pass@8 before and after, by seed.

    python benchmarks/rl.py --environment gcd --steps 40 --seeds 0 1 2 --out runs/rl

The held-out problems are the same for every seed, which decides on the problems practised and on all that is drawn.
Each run is one of `ossia train rl`, resumed where it was broken off; finished ones are not run again. A table goes to
standard output, everything to a JSON file beside the runs.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from ossia.train.loop import read_log
from ossia.train.rl.recipe import RlSettings, train

CURVES = ("step", "reward", "length", "mismatch_kl", "surprise", "kept_groups", "gradient_norm", "flips")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--environment", action="append", required=True)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--heldout-problems", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    rows = [row(given, seed) for seed in given.seeds]
    print(table(rows))
    gains = [row["after"]["pass_at_1"] - row["before"]["pass_at_1"] for row in rows]
    spread = statistics.stdev(gains) if len(gains) > 1 else 0.0
    print(f"gain in pass@1: {statistics.mean(gains):+.1%}, standard deviation {spread:.1%}, least {min(gains):+.1%}")
    path = given.out / "rl.json"
    facts = {"environment": given.environment, "model": given.model, "steps": given.steps, "seeds": rows}
    path.write_text(json.dumps(facts | {"mean_gain": statistics.mean(gains), "spread": spread}, indent=1) + "\n")
    print(f"written: {path}")


def row(given: argparse.Namespace, seed: int) -> dict[str, Any]:
    """What came of one seed."""
    out: Path = given.out / f"seed-{seed}"
    kept = given.out / f"seed-{seed}.json"
    if not kept.exists():
        settings = RlSettings(
            model=given.model,
            environment=tuple(given.environment),
            steps=given.steps,
            learning_rate=given.learning_rate,
            heldout_problems=given.heldout_problems,
            threads=given.threads,
            seed=seed,
            out=out,
            resume=any((out / "run" / "states").glob("step-*")),
        )
        begun = time.monotonic()
        train(settings, report)
        made = {"seed": seed, "seconds": round(time.monotonic() - begun), **summary(read_log(out))}
        kept.write_text(json.dumps(made) + "\n")
    return json.loads(kept.read_text())


def report(line: dict[str, Any]) -> None:
    """A line of progress."""
    names = ("step", "reward", "length", "mismatch_kl", "pass_at_1", "pass_at_8")
    print("  ".join(f"{name} {line[name]:.4g}" for name in names if name in line), flush=True)


def summary(log: list[dict[str, Any]]) -> dict[str, Any]:
    """Before, after, and the curves between."""
    measured = [line for line in log if "pass_at_1" in line]
    steps = [line for line in log if "reward" in line]
    names = ("pass_at_1", "pass_at_8", "heldout_length")
    return {
        "before": {name: measured[0][name] for name in names},
        "after": {name: measured[-1][name] for name in names},
        "largest_mismatch_kl": max(line["mismatch_kl"] for line in steps),
        "curves": [{name: line[name] for name in CURVES if name in line} for line in steps],
    }


def table(rows: list[dict[str, Any]]) -> str:
    """One line a seed."""
    lines = [
        "| seed | pass@1 | pass@8 | tokens of an answer | largest mismatch KL | minutes |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        before, after = row["before"], row["after"]
        passes = [f"{before[name]:.1%} → {after[name]:.1%}" for name in ("pass_at_1", "pass_at_8")]
        lengths = f"{before['heldout_length']:.0f} → {after['heldout_length']:.0f}"
        cells = (row["seed"], *passes, lengths, f"{row['largest_mismatch_kl']:.1e}", f"{row['seconds'] / 60:.1f}")
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
