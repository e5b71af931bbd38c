"""Many processes against one: the same loss, the same gradients."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train import distributed_step
from tests.train.processes import Place, run


def found(
    folder: Path, size: int, expert_parallel: int, places: list[Place] | None = None, **variables: str
) -> dict[str, Any]:
    """What `size` processes come to."""
    folder.mkdir()
    run(size, "distributed_step", "gradients", folder, places, EXPERT_PARALLEL=str(expert_parallel), **variables)
    return torch.load(folder / "found.pt")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process comes to."""
    return found(tmp_path_factory.mktemp("alone") / "1", 1, 1)


def agree(together: dict[str, Any], alone: dict[str, Any]) -> None:
    """Loss and every gradient are the same but for rounding."""
    torch.testing.assert_close(together["loss"], alone["loss"], rtol=1e-6, atol=0)
    assert together["gradients"].keys() == alone["gradients"].keys()
    for name, gradient in alone["gradients"].items():
        error = (together["gradients"][name] - gradient).abs().max() / gradient.abs().max()
        assert error < 1e-5, f"{name}: {error}"


@pytest.mark.parametrize(("size", "expert_parallel"), [(2, 1), (2, 2), (4, 2)])
def test_processes_together_have_the_gradients_of_one(
    tmp_path: Path, alone: dict[str, Any], size: int, expert_parallel: int
) -> None:
    agree(found(tmp_path / "many", size, expert_parallel), alone)


def test_every_process_holds_its_part_alone(tmp_path: Path, alone: dict[str, Any]) -> None:
    config, held = distributed_step.CONFIG, found(tmp_path / "many", 2, 2)["held"]
    assert held["layers.0.mlp.experts.gate_up"] * 2 == 8 * 2 * config.intermediate_size * config.hidden_size
    assert sum(held.values()) * 2 == sum(gradient.numel() for gradient in alone["gradients"].values())


@pytest.fixture
def hosts() -> Iterator[list[Place]]:
    """Two network namespaces with a cable between them, which is as much of two machines as one can have."""
    names = [f"ossia{os.getpid()}{letter}" for letter in "ab"]
    cable = [f"os{os.getpid() % 10**7}{letter}" for letter in "ab"]
    addresses = ["10.77.0.1", "10.77.0.2"]

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    try:
        try:
            for name in names:
                ip("netns", "add", name)
                ip("-n", name, "link", "set", "lo", "up")
            ip("link", "add", cable[0], "netns", names[0], "type", "veth", "peer", "name", cable[1], "netns", names[1])
            for name, end, address in zip(names, cable, addresses, strict=True):
                ip("-n", name, "addr", "add", f"{address}/24", "dev", end)
                ip("-n", name, "link", "set", end, "up")
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("NO NETWORK NAMESPACES HERE: they need root and the program ip")
        yield [(["ip", "netns", "exec", n], {"GLOO_SOCKET_IFNAME": end}) for n, end in zip(names, cable, strict=True)]
    finally:
        if shutil.which("ip"):
            for name in names:
                subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def test_two_hosts_have_the_gradients_of_one(tmp_path: Path, alone: dict[str, Any], hosts: list[Place]) -> None:
    agree(found(tmp_path / "many", 2, 2, hosts, MASTER_ADDR="10.77.0.1"), alone)
