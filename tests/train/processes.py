"""Runs a function of a module beside this one in several processes of one world.

Each process is `python tests/train/processes.py MODULE FUNCTION FOLDER`.
"""

import importlib
import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    """A port that nothing listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


Place = tuple[list[str], dict[str, str]]
"""What comes before a command, and variables, that put a process on a host of its own."""


def start(
    size: int, module: str, function: str, folder: Path, places: list[Place] | None = None, **variables: str
) -> list[subprocess.Popen[str]]:
    """`size` processes, of which each calls `function(folder)` of `tests.train.MODULE`."""
    places = places or [([], {})] * size
    common = {
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-W", "ignore", str(Path(__file__)), module, function, str(folder)]
    return [
        subprocess.Popen(
            [*places[rank][0], *command],
            env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} | places[rank][1] | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(size)
    ]


def run(
    size: int, module: str, function: str, folder: Path, places: list[Place] | None = None, **variables: str
) -> None:
    """`start`, wait, and fail with what was said where a process fails."""
    processes = start(size, module, function, folder, places, **variables)
    said = [process.communicate(timeout=240)[0] for process in processes]
    failed = [f"process {rank}:\n{text}" for rank, text in enumerate(said) if processes[rank].returncode]
    assert not failed, "\n".join(failed)


if __name__ == "__main__":
    _, module_name, function_name, folder_name = sys.argv
    getattr(importlib.import_module(f"tests.train.{module_name}"), function_name)(Path(folder_name))
