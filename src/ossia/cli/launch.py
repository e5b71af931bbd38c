"""`ossia train launch`: the same command in many processes, on one machine or several, through torchrun's library."""

import logging
import os
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ossia.cli import EXIT_BAD_INPUT, EXIT_INTERRUPTED

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure


@click.command("launch", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--processes", type=click.IntRange(min=1), required=True, help="On this machine.")
@click.option("--nodes", type=click.IntRange(min=1), default=1, show_default=True, help="Machines in all.")
@click.option("--node", type=click.IntRange(min=0), default=0, show_default=True, help="Which of them this is, from 0.")
@click.option("--address", default="127.0.0.1:29500", show_default=True, help="HOST:PORT of node 0.")
@click.argument("recipe")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def launch(processes: int, nodes: int, node: int, address: str, recipe: str, arguments: tuple[str, ...]) -> None:
    """Train in many processes.

    Give the recipe and its flags as to `ossia train`. On several machines run the same command on each, with its own
    --node; they meet at --address. A process that dies ends all of them; the last saved state is kept, and the same
    command with --resume goes on from it, with another number of processes too.
    """
    from ossia.errors import ConfigError, TrainingError

    _check_recipe(recipe, arguments)

    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"--address is {address}: give HOST:PORT")
    if node >= nodes:
        raise ConfigError(f"--node is {node}: give a number below --nodes {nodes}")
    if node == 0:
        _check_free(host, int(port))
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in ("torch.distributed.elastic", "torch.distributed.elastic.agent.server.api"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # What they would say is said below.
    # As torchrun does, unless the user knows better: the cores are shared among the processes.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    config = LaunchConfig(
        min_nodes=nodes,
        max_nodes=nodes,
        nproc_per_node=processes,
        run_id="ossia",
        rdzv_backend="static",
        rdzv_endpoint=f"{host}:{port}",
        rdzv_configs={"rank": node, "timeout": 900},
        max_restarts=0,
        monitor_interval=0.2,
    )
    command = ["-u", "-m", "ossia", "train", recipe, *arguments]
    try:
        elastic_launch(config, sys.executable)(*command)
    except ChildFailedError as error:
        rank, cause = min(error.failures.items(), key=lambda failure: _far_from_cause(failure[1]))
        if said := _told(cause):
            raise TrainingError(said) from None
        raise TrainingError(
            f"process {rank} {_end(cause.exitcode)}, and the others were stopped: the last saved state is kept; "
            "give the same command with --resume to go on from it"
        ) from None
    except SignalException:
        raise click.exceptions.Exit(EXIT_INTERRUPTED) from None
    except RuntimeError as error:
        raise TrainingError(f"the nodes do not find each other at {address} ({str(error).splitlines()[0]})") from None


def _check_recipe(name: str, arguments: tuple[str, ...]) -> None:
    """Raises what the recipe would say of its flags and settings, once rather than in every process."""
    from ossia.cli.recipe import RecipeCommand
    from ossia.cli.train import RECIPES, train
    from ossia.errors import ConfigError

    command = train.get_command(click.get_current_context(), name)
    if not isinstance(command, RecipeCommand):
        raise ConfigError(f"unknown recipe {name!r}: give one of {', '.join(RECIPES)}")
    flags = command.make_context(f"ossia train {name}", list(arguments)).params
    del flags["as_json"]
    command.settings(flags.pop("recipe"), flags)


def _far_from_cause(failure: "ProcessFailure") -> tuple[int, int]:
    """Orders failures by how likely they are the cause: the others end because of it, or are stopped."""
    stopped = failure.exitcode == -signal.SIGTERM
    followed = failure.exitcode == EXIT_BAD_INPUT and not _told(failure)
    return 2 * stopped + followed, failure.timestamp


def _told(failure: "ProcessFailure") -> str:
    """The line of the error that ended a process; "" where it had none to tell."""
    return failure.message if Path(failure.error_file).is_file() else ""


def _check_free(host: str, port: int) -> None:
    """Raises ConfigError where node 0 cannot listen there."""
    from ossia.errors import ConfigError

    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(f"--address {host}:{port} cannot be used ({error.strerror}): give another port") from None


def _end(code: int) -> str:
    if code < 0:
        return f"was killed ({signal.Signals(-code).name})"
    return f"ended with code {code}"
