"""What the processes of test_many_processes.py do: a short run of the recipe `sft`, as the variables say."""

import json
import os
from dataclasses import replace
from pathlib import Path

from ossia.config import OSSIA_DEMO
from ossia.kernels import select
from ossia.model.adapt import build
from ossia.model.locate import demo_folder
from ossia.model.write import write_checkpoint
from ossia.train.optim import initial_weights
from ossia.train.sft import SftSettings, train

VOCABULARY = demo_folder() / "tokenizer.json"


def conversations(path: Path) -> None:
    """A file of short conversations."""
    turns = [[("user", f"What is {n} + {n}?"), ("assistant", f"It is {2 * n}.")] for n in range(40)]
    lines = [json.dumps({"messages": [{"role": role, "content": text} for role, text in turn]}) for turn in turns]
    path.write_text("".join(line + "\n" for line in lines))


def two_layers(folder: Path) -> None:
    """A new model of the bundled one's width: what processes send one another grows with its layers."""
    kinds = OSSIA_DEMO.layer_types[:2]
    config = replace(OSSIA_DEMO, num_hidden_layers=2, layer_types=kinds, mxfp4_experts=False)
    weights = dict(initial_weights(build(config, select("torch")), 0))
    write_checkpoint(folder, config, weights, extra_files=[VOCABULARY])


def sft(folder: Path) -> None:
    """Train `MODEL`, or a new one of the bundled model's shape, to `STEPS` in `folder`.

    In float32 and without the quantiser, which would hide or enlarge rounding.
    """
    settings = SftSettings(
        out=folder,
        **(
            {"model": os.environ["MODEL"]}
            if "MODEL" in os.environ
            else {"preset": "ossia-demo", "tokenizer": VOCABULARY}
        ),
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
