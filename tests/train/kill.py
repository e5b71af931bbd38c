"""A tiny run of `sft` killed at random moments and resumed each time, against an unbroken one.

    python tests/train/kill.py --kills 10 --folder FOLDER      fails where any weight differs

The moments are drawn by the log: after a number of further steps, and then some milliseconds, so that kills fall within
steps, within saves and between them.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

STEPS = 40


def conversations(folder: Path) -> Path:
    """A file of short conversations."""
    path = folder / "conversations.jsonl"
    turns = [[("user", f"What is {n} + {n}?"), ("assistant", f"It is {2 * n}.")] for n in range(60)]
    lines = [json.dumps({"messages": [{"role": role, "content": text} for role, text in turn]}) for turn in turns]
    path.write_text("".join(line + "\n" for line in lines))
    return path


def command(out: Path, steps: int, *more: str) -> list[str]:
    """The run, in a process of its own."""
    flags = {
        "out": out,
        "model": "demo",
        "data": [str(conversations(out.parent))],
        "validation_data": [str(conversations(out.parent))],
        "steps": steps,
        "batch_tokens": 300,
        "accumulate": 2,
        "warmup_steps": 2,
        "decay_steps": 4,
        "save_every": 2,
        "log_every": 1,
        "validation_records": 2,
        "samples": 0,
        "threads": 1,
    }
    program = (
        "import sys\nfrom pathlib import Path\nfrom ossia.train.sft import SftSettings, train\n"
        f"values = { ({name: str(value) if isinstance(value, Path) else value for name, value in flags.items()})!r}\n"
        "train(SftSettings(**values, resume='--resume' in sys.argv), lambda line: None)\n"
    )
    return [sys.executable, "-c", program, *more]


def steps_logged(out: Path) -> int:
    """Lines of the log that tell of a step."""
    log = out / "run" / "log.jsonl"
    return sum('"loss"' in line for line in log.read_text().splitlines()) if log.exists() else 0


def killed(out: Path, kills: int, steps: int, rng: random.Random) -> list[int]:
    """Run to the end, killed so many times on the way; returns the steps that were logged when each kill fell."""
    fell: list[int] = []
    for number in range(kills):
        more = ["--resume"] if (out / "run" / "settings.toml").exists() else []
        wanted = steps_logged(out) + rng.randint(0, max(1, steps // (kills + 1)))
        delay = rng.uniform(0, 0.15)
        with subprocess.Popen(command(out, steps, *more), stderr=subprocess.PIPE, text=True) as process:
            while process.poll() is None and (steps_logged(out) < wanted or not (out / "run" / "log.jsonl").exists()):
                time.sleep(0.005)
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
            assert process.stderr is not None
            said = process.stderr.read()
        if process.returncode not in (0, -signal.SIGKILL):
            raise AssertionError(f"kill {number}: the run failed by itself: {said}")
        fell.append(steps_logged(out))
    subprocess.run(command(out, steps, "--resume"), check=True, capture_output=True)
    return fell


def compare(one: Path, other: Path) -> None:
    """Raises AssertionError unless two finished runs have the same weights, in checkpoint and masters, and losses."""
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), f"{name} differs"
    newest = [max((run / "run" / "states").glob("step-*")) for run in (one, other)]
    manifests = [json.loads((folder / "manifest.json").read_text())["sha256"]["__0_0.distcp"] for folder in newest]
    assert manifests[0] == manifests[1], "the masters differ"
    losses = [
        [(line["step"], line["loss"]) for line in map(json.loads, log.read_text().splitlines()) if "loss" in line]
        for log in (one / "run" / "log.jsonl", other / "run" / "log.jsonl")
    ]
    assert losses[0] == losses[1], "the losses differ"


def main() -> None:
    """The script."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, required=True)
    arguments = parser.parse_args()
    subprocess.run(command(arguments.folder / "unbroken", STEPS), check=True, capture_output=True)
    fell = killed(arguments.folder / "killed", arguments.kills, STEPS, random.Random(arguments.seed))
    print(f"killed after {fell} of {STEPS} steps")
    compare(arguments.folder / "unbroken", arguments.folder / "killed")
    print("weights, masters and losses are those of the unbroken run, byte for byte")


if __name__ == "__main__":
    main()
