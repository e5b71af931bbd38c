"""One run on many processes: who they are, how the weights are cut among them, and how tokens find their experts.

Every process reads its own documents (data parallel) and holds its own part of every weight, gradient, master and
moment (FSDP2: a layer's weights are gathered when it is computed, its gradients added up and scattered). With expert
parallelism the experts stay where they are and tokens travel: processes form a grid `outer` x `experts`, each column of
it holds other experts, and a row of it, all of them. Gradients are sums over processes, never means, since the loop
divides by the tokens of the whole step: one process or many, the same step.

    ossia train launch --processes 4 sft ...       torchrun, with its errors in a line

Shapes: T tokens, K experts a token, E experts, P processes of a row, S tokens received, D hidden, I intermediate.
"""

import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from ossia.errors import ConfigError, TrainingError
from ossia.model.experts import DenseExperts
from ossia.model.transformer import MixtureOfExperts, Transformer

OUTER, EXPERTS, WORLD = "outer", "experts", "world"


class OthersGoneError(TrainingError):
    """Another process of this run has ended, or is stuck: it has the cause to tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """The processes of a run, as one of them sees them."""

    rank: int = 0
    size: int = 1
    mesh: DeviceMesh | None = None
    """[outer, experts]; None where a run is one process."""
    everyone: DeviceMesh | None = None
    """[world], the same processes in a line."""

    @classmethod
    def single(cls) -> "World":
        """One process, which costs nothing."""
        return cls()

    @classmethod
    def from_environment(cls, *, expert_parallel: int = 1, device: str = "cpu", timeout: float = 600.0) -> "World":
        """What torchrun's variables say, one process where there are none.

        expert_parallel: processes among which the experts are cut. timeout: seconds that a process waits for the others
        before it gives up. Raises ConfigError for a number of processes that cannot be cut so, TrainingError where the
        processes do not find each other.
        """
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if expert_parallel < 1 or size % expert_parallel:
            raise ConfigError(
                f"expert_parallel is {expert_parallel}: give a number that divides the {size} processes of this run"
            )
        if size == 1:
            return cls.single()
        on_gpu = device.startswith("cuda")
        if on_gpu:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        try:
            # Counts and states are on the CPU whatever the model is on.
            backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
            dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
        except (RuntimeError, ValueError) as error:
            reason = str(error).split("\n")[0]
            address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            raise TrainingError(
                f"the processes do not find each other at {address} ({reason}): "
                "see that the address can be reached from every node and that the port is free"
            ) from None
        kind = "cuda" if on_gpu else device
        mesh = init_device_mesh(kind, (size // expert_parallel, expert_parallel), mesh_dim_names=(OUTER, EXPERTS))
        everyone = init_device_mesh(kind, (size,), mesh_dim_names=(WORLD,))
        return cls(rank=dist.get_rank(), size=size, mesh=mesh, everyone=everyone)

    @property
    def is_main(self) -> bool:
        """Whether this process speaks for all: it logs, reports and writes what is written once."""
        return self.rank == 0

    def sum(self, value: Tensor) -> Tensor:
        """The sum of a tensor over all processes, the same bits on each; outside of autograd."""
        if self.size == 1:
            return value.detach()
        total = value.detach().clone()
        _together(dist.all_reduce, total)
        return total

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.size > 1:
            _together(dist.barrier)

    def agree(self, error: str | None) -> str | None:
        """The first error of any process, known to all of them; None where there is none."""
        if self.size == 1:
            return error
        said: list[str | None] = [None] * self.size
        _together(dist.all_gather_object, said, error)
        return next((one for one in said if one is not None), None)

    @contextmanager
    def watched(self) -> Generator[None]:
        """Raises OthersGoneError where what is done inside fails for want of another process."""
        try:
            yield
        except RuntimeError as error:
            if self.size == 1 or not any(word in str(error) for word in ("gloo", "NCCL", "peer")):
                raise
            raise _others_gone(error) from None

    def close(self) -> None:
        """Leave the others."""
        if self.size > 1:
            dist.destroy_process_group()


def _together(collective: Callable[..., Any], *operands: Any, **options: Any) -> None:
    """Raises OthersGoneError where another process has gone, or has kept this one waiting for too long."""
    try:
        collective(*operands, **options)
    except RuntimeError as error:
        raise _others_gone(error) from None


def _others_gone(error: RuntimeError) -> OthersGoneError:
    reason = str(error).split("\n")[0]
    return OthersGoneError(
        f"another process of this run is gone or stuck ({reason}): the last saved state is kept; "
        "start all of them again with --resume"
    )


# -------------------------------------------------------------------- weights, cut


def shard(model: Transformer, world: World) -> None:
    """Cut the parameters of `model` among the processes, in place; nothing is done where there is one.

    The model may be on the meta device; a parameter that is filled keeps its values. Raises ConfigError where the
    experts cannot be cut evenly.
    """
    mesh, everyone = world.mesh, world.everyone
    if mesh is None or everyone is None:
        return
    if mesh[EXPERTS].size() > 1:
        for module in model.modules():
            if isinstance(module, MixtureOfExperts):
                module.experts = ParallelExperts.of(module.experts, mesh)
                _gathered(fully_shard(module.experts, mesh=mesh[OUTER], shard_placement_fn=lambda _: Shard(1)))
    for block in model.layers:
        _gathered(fully_shard(block, mesh=everyone))
    _gathered(fully_shard(model.unembedding, mesh=everyone))
    _gathered(fully_shard(model, mesh=everyone))
    for method in ("hidden", "best"):
        register_fsdp_forward_method(model, method)


def _gathered(module: Any) -> None:
    """Gradients are sums over processes."""
    sharded = cast(FSDPModule, module)
    sharded.set_gradient_divide_factor(1.0)
    sharded.set_force_sum_reduction_for_comms(True)


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, sharing its storage; the tensor itself where it is whole."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def part(whole: Tensor, like: Tensor) -> Tensor:
    """The part of `whole` that this process holds of `like`."""
    if not isinstance(like, DTensor):
        return whole
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None).to_local()


def joined(piece: Tensor, like: Tensor) -> Tensor:
    """A piece of the form of this process's part of `like` as what it is a piece of: a DTensor where `like` is one."""
    if not isinstance(like, DTensor):
        return piece
    return DTensor.from_local(
        piece, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, on every process; every process must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


# -------------------------------------------------------------------- tokens that travel


class ParallelExperts(DenseExperts):
    """The experts of one process of a row; tokens are sent to the process that holds their expert, and come back.

    Parameters have the names and, as DTensors, the shapes of `DenseExperts`, so checkpoints are the same.
    """

    @classmethod
    def of(cls, experts: nn.Module, mesh: DeviceMesh) -> "ParallelExperts":
        """`experts` cut along `mesh`'s dimension of experts."""
        if not isinstance(experts, DenseExperts):
            raise ConfigError(
                f"expert parallelism cuts dense experts, not {type(experts).__name__}: use expert_parallel = 1"
            )
        row, count = mesh[EXPERTS], experts.gate_up.shape[0]
        if count % row.size():
            raise ConfigError(f"expert_parallel is {row.size()}: give a number that divides the {count} experts")
        parallel = cls.__new__(cls)
        nn.Module.__init__(parallel)
        parallel.kernels, parallel.limit = experts.kernels, experts.limit
        parallel.row = row
        for name, parameter in experts.named_parameters(recurse=False):
            if parameter.shape[1] % mesh[OUTER].size():
                raise ConfigError(
                    f"{name} has {parameter.shape[1]} rows, which {mesh[OUTER].size()} processes cannot share evenly: "
                    "use another expert_parallel"
                )
            cut = distribute_tensor(parameter.data, row, [Shard(0)], src_data_rank=None)
            setattr(parallel, name, nn.Parameter(cut, requires_grad=parameter.requires_grad))
        return parallel

    row: DeviceMesh

    def forward(self, x: Tensor, expert_ids: Tensor, expert_weights: Tensor) -> Tensor:
        """See `Experts`."""
        gate_up, gate_up_bias = local(self.gate_up), local(self.gate_up_bias)
        down, down_bias = local(self.down), local(self.down_bias)
        group, size, held = self.row.get_group(), self.row.size(), len(gate_up)
        num_active = expert_ids.shape[-1]

        # What goes where: pairs of token and expert, sorted by expert and so by process.
        chosen_S, order_S = expert_ids.flatten().sort(stable=True)
        going_PE = chosen_S.bincount(minlength=size * held).view(size, held)
        coming_PE = torch.empty_like(going_PE)
        _together(dist.all_to_all_single, coming_PE, going_PE, group=group)
        going, coming = going_PE.sum(1).tolist(), coming_PE.sum(1).tolist()

        received_SD = _exchange(x.index_select(0, order_S // num_active), going, coming, group)
        ids_S = torch.arange(held, device=x.device).repeat(size).repeat_interleave(coming_PE.flatten())
        ones_S1 = received_SD.new_ones(len(ids_S), 1)
        out_SD = self.kernels.experts(
            received_SD, gate_up, gate_up_bias, down, down_bias, ids_S.unsqueeze(-1), ones_S1, self.limit
        )
        # Every process takes part in every sum of gradients, also where no token came.
        out_SD = out_SD + 0 * sum(weight[:, :1].sum() for weight in (gate_up, gate_up_bias, down, down_bias))

        returned_SD = _exchange(out_SD, coming, going, group)
        scaled_SD = returned_SD * expert_weights.flatten()[order_S].unsqueeze(-1)
        return scaled_SD[order_S.argsort()].unflatten(0, (-1, num_active)).sum(1).to(x.dtype)


class _Exchange(torch.autograd.Function):
    """Rows to other processes and rows from them; the gradients go the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, going: list[int], coming: list[int], group: Any) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.going, ctx.coming, ctx.group = going, coming, group
        return _send(x, going, coming, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _send(grad, ctx.coming, ctx.going, ctx.group), None, None, None


def _exchange(x: Tensor, going: list[int], coming: list[int], group: Any) -> Tensor:
    return cast(Tensor, _Exchange.apply(x, going, coming, group))


def _send(x: Tensor, going: list[int], coming: list[int], group: Any) -> Tensor:
    out = x.new_empty(sum(coming), *x.shape[1:])
    _together(dist.all_to_all_single, out, x.contiguous(), coming, going, group=group)
    return out
