"""A tool that the bundled model has never seen, and conversations that teach it.

    python -m ossia.demo.new_tool OUT [--count 2000]     writes OUT/train.jsonl and OUT/heldout.jsonl

The curriculum asks for its tools by verb and noun ("Book the hotel in Oslo."). Here nothing says which tool is meant:
a cargo, a weight and a port have to be recognised in many wordings. Held-out requests have wordings, and pairs of a
cargo and a port, that no conversation of the training file has; cargoes and ports are words that the model has met.
"""

import argparse
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from ossia.demo.curriculum import words
from ossia.demo.curriculum.sample import Effort, Message, Sample, Split, draw_date, draw_effort, opening, user
from ossia.demo.curriculum.tools import offer
from ossia.files import write_whole

FAMILY = "new_tool"
NAME = "ship_crate"
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": NAME,
        "description": "Send a crate by sea.",
        "parameters": {
            "type": "object",
            "properties": {
                "cargo": {"type": "string", "description": "What is in the crate."},
                "weight": {"type": "integer", "description": "Weight in kilograms."},
                "port": {"type": "string", "description": "Port of arrival."},
            },
            "required": ["cargo", "weight", "port"],
        },
    },
}

_OPENINGS = (
    "Our next crate:", "New freight:", "This has to sail:", "By sea, please:", "For the next boat:", "Cargo ready:",
    "Please send off", "We are sending", "I have", "There goes", "Put on the water:", "On board with",
    "Another crate,", "Outgoing:", "Dispatch", "We must move", "Customer paid for", "Load",
)  # fmt: skip
_CARGOES = ("{c}", "a crate of {c}", "some {c}", "one load of {c}", "boxed {c}")
_WEIGHTS = ("{w} kg", "{w} kilos", "weighing {w} kg", "{w} kg in all", "about {w} kilograms")
_PORTS = ("bound for {p}", "to {p}", "port {p}", "arriving at {p}", "to the docks of {p}")
_ORDERS = (
    "{cargo}, {weight}, {port}",
    "{weight}, {cargo}, {port}",
    "{cargo}, {port}, {weight}",
    "{cargo} {port}, {weight}",
)


def conversation(seed: int, index: int, split: Split = "train") -> Sample:
    """The conversation at one place of an endless sequence, ending with the call; a function of its arguments alone."""
    rng = Random(f"{seed}/{split}/{FAMILY}/{index}")
    effort = draw_effort(rng)
    cargo, port = _drawn(split, lambda: f"{_cargo(rng)}|{rng.choice(words.CITIES)}").split("|")
    arguments = {"cargo": cargo, "weight": rng.randint(5, 10 ** rng.randint(2, 4)), "port": port}
    offered = [TOOL, *offer(rng, rng.choice((0, 0, 1)))]
    rng.shuffle(offered)
    messages: list[Message] = [
        *opening(rng),
        user(_drawn(split, lambda: _wording(rng)).format(c=cargo, w=arguments["weight"], p=port)),
        _call(arguments, _reasoning(arguments, offered, effort)),
    ]
    return Sample(
        family=FAMILY,
        effort=effort,
        messages=messages,
        tools=offered,
        check="call",
        call={"name": NAME, "arguments": arguments},
        date=draw_date(rng),
    )


def _drawn(split: Split, draw: Callable[[], str]) -> str:
    """Draws until the outcome is of this split: one text in eight is held out, by a hash that no run changes."""
    while True:
        text = draw()
        if (hashlib.sha256(text.encode()).digest()[0] < 32) == (split == "heldout"):
            return text


def _cargo(rng: Random) -> str:
    first, second = rng.sample(words.OBJECTS, 2)
    return f"{first} and {second}" if rng.random() < 0.3 else first


def _wording(rng: Random) -> str:
    """One of a few thousand wordings."""
    parts = {"cargo": rng.choice(_CARGOES), "weight": rng.choice(_WEIGHTS), "port": rng.choice(_PORTS)}
    return f"{rng.choice(_OPENINGS)} {rng.choice(_ORDERS).format(**parts)}."


def _reasoning(arguments: dict[str, Any], offered: list[dict[str, Any]], effort: Effort) -> str:
    names = [tool["function"]["name"] for tool in offered]
    fits = ", ".join(f"{name} {'yes' if name == NAME else 'no'}" for name in names)
    used = f"Use {NAME}: {', '.join(f'{name}={value}' for name, value in arguments.items())}"
    if effort == "low":
        return f"ship the crate? {fits}\n{used}"
    lines = ["The user wants to ship the crate.", f"Tools: {fits}.", used]
    if effort == "high":
        lines += [f"The {name} is {value}." for name, value in arguments.items()]
    return "\n".join(lines)


def _call(arguments: dict[str, Any], reasoning: str) -> Message:
    called = {"name": NAME, "arguments": json.dumps(arguments, separators=(",", ":"))}
    calls = [{"id": "call_1", "type": "function", "function": called}]
    return {"role": "assistant", "reasoning": reasoning, "content": None, "tool_calls": calls}


def write(folder: Path, *, count: int = 2000, heldout: int = 200, seed: int = 0) -> tuple[Path, Path]:
    """Write the two files, one conversation a line as `ossia train` reads them; returns their places."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes: tuple[tuple[Split, int], ...] = (("train", count), ("heldout", heldout))
    for split, size in sizes:
        lines = [_line(conversation(seed, index, split)) for index in range(size)]
        write_whole(folder / f"{split}.jsonl", "".join(lines))
    return folder / "train.jsonl", folder / "heldout.jsonl"


def _line(one: Sample) -> str:
    record = {"messages": one.messages, "tools": one.tools, "effort": one.effort, "date": one.date}
    return json.dumps(record, ensure_ascii=False) + "\n"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m ossia.demo.new_tool", description="Conversations with a new tool.")
    parser.add_argument("out", type=Path, help="folder for train.jsonl and heldout.jsonl")
    parser.add_argument("--count", type=int, default=2000, help="conversations to train on")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for path in write(arguments.out, count=arguments.count, seed=arguments.seed):
        print(path)


if __name__ == "__main__":
    main()
