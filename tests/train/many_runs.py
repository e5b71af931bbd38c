"""What the processes of test_many_processes.py do: a short run of the recipe `sft`, as the variables say."""

import json
import os
from pathlib import Path

import ossia.demo
from ossia.train.sft import SftSettings, train


def conversations(path: Path) -> None:
    """A file of short conversations."""
    turns = [[("user", f"What is {n} + {n}?"), ("assistant", f"It is {2 * n}.")] for n in range(40)]
    lines = [json.dumps({"messages": [{"role": role, "content": text} for role, text in turn]}) for turn in turns]
    path.write_text("".join(line + "\n" for line in lines))


def sft(folder: Path) -> None:
    """Train to `STEPS` in `folder`; in float32 and without the quantiser, which would hide or enlarge rounding."""
    settings = SftSettings(
        out=folder,
        preset="ossia-demo",
        tokenizer=Path(ossia.demo.__file__).with_name("tokenizer.json"),
        qat=False,
        precision="float32",
        data=(os.environ["DATA"],),
        steps=int(os.environ["STEPS"]),
        resume="RESUME" in os.environ,
        expert_parallel=int(os.environ.get("EXPERT_PARALLEL", "1")),
        optimizer="muon" if "MUON" in os.environ else "adamw",
        batch_tokens=700,
        max_length=150,
        accumulate=2,
        learning_rate=1e-3,
        warmup_steps=2,
        decay_steps=0,
        balance_coefficient=0.01,
        validation_records=0,
        samples=0,
        save_every=3,
        log_every=1,
        threads=1,
    )
    train(settings, lambda _line: None)
