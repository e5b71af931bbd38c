"""The native ops on packed weights and small activations, and the native packers. Importing it needs the native module.

Operands go over as numpy views, and results are made by numpy: handing a torch tensor to native code costs ten times as
much, making one twice. What operands must be is checked there, once; a KernelError names the one that is wrong.

Shapes: R rows, C columns, B blocks of 32 columns, otherwise as in `ops`.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from ossia.errors import KernelError
from ossia.kernels import _native, torch_ops
from ossia.kernels.packed import BLOCK, Q8, TILE, Bf16, Mxfp4


def linear_bf16(x: Tensor, weight: Bf16, bias: Tensor | None, rows: int) -> Tensor:
    """See `ops.LinearBf16`."""
    out_TR = np.empty((x.shape[0], rows), np.float32)
    try:
        _native.linear_bf16(
            x.numpy(), weight.weight.view(torch.uint16).numpy(), None if bias is None else bias.numpy(), out_TR
        )
    except (ValueError, TypeError, RuntimeError) as error:
        raise _refusal("linear_bf16", error) from None
    return torch.from_numpy(out_TR)


def linear_q8(x: Tensor, weight: Q8, bias: Tensor | None, rows: int) -> Tensor:
    """See `ops.LinearQ8`."""
    out_TR = np.empty((x.shape[0], rows), np.float32)
    try:
        _native.linear_q8(
            x.numpy(),
            weight.codes.numpy(),
            weight.multipliers.numpy(),
            weight.row_scales.numpy(),
            None if bias is None else bias.numpy(),
            out_TR,
        )
    except (ValueError, TypeError, RuntimeError) as error:
        raise _refusal("linear_q8", error) from None
    return torch.from_numpy(out_TR)


def experts_packed(
    x: Tensor,
    gate_up: Mxfp4,
    gate_up_bias: Tensor,
    down: Mxfp4,
    down_bias: Tensor,
    expert_ids: Tensor,
    expert_weights: Tensor,
    limit: float,
) -> Tensor:
    """See `ops.ExpertsPacked`."""
    return _experts(
        _native.experts_packed, x, gate_up, gate_up_bias, down, down_bias, expert_ids, expert_weights, limit
    )


def experts_exact(
    x: Tensor,
    gate_up: Mxfp4,
    gate_up_bias: Tensor,
    down: Mxfp4,
    down_bias: Tensor,
    expert_ids: Tensor,
    expert_weights: Tensor,
    limit: float,
) -> Tensor:
    """See `ops.ExpertsPacked`."""
    return _experts(_native.experts_exact, x, gate_up, gate_up_bias, down, down_bias, expert_ids, expert_weights, limit)


def _experts(
    native: Callable[..., None],
    x: Tensor,
    gate_up: Mxfp4,
    gate_up_bias: Tensor,
    down: Mxfp4,
    down_bias: Tensor,
    expert_ids: Tensor,
    expert_weights: Tensor,
    limit: float,
) -> Tensor:
    out_TD = np.empty(x.shape, np.float32)
    try:
        native(
            x.numpy(),
            gate_up.codes.numpy(),
            gate_up.scales.numpy(),
            gate_up_bias.numpy(),
            down.codes.numpy(),
            down.scales.numpy(),
            down_bias.numpy(),
            expert_ids.numpy(),
            expert_weights.numpy(),
            limit,
            out_TD,
        )
    except (ValueError, TypeError, RuntimeError) as error:
        raise _refusal(native.__name__, error) from None
    return torch.from_numpy(out_TD)


def rms_norm(x: Tensor, scale: Tensor, eps: float) -> Tensor:
    """See `ops.RmsNorm`. Other types than float32, and what is differentiated, are torch's."""
    if not (_plain(x) and _plain(scale)):
        return torch_ops.rms_norm(x, scale, eps)
    out_TD = np.empty(x.shape, np.float32)
    try:
        _native.rms_norm(x.contiguous().numpy(force=True), scale.numpy(force=True), eps, out_TD)
    except ValueError as error:
        raise _refusal("rms_norm", error) from None
    return torch.from_numpy(out_TD)


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """See `ops.Rope`. Other types than float32, and what is differentiated, are torch's."""
    if not (_plain(x) and _plain(cos) and _plain(sin)):
        return torch_ops.rope(x, cos, sin)
    out_TNH = np.empty(x.shape, np.float32)
    try:
        _native.rope(x.numpy(force=True), cos.numpy(), sin.numpy(), out_TNH)
    except ValueError as error:
        raise _refusal("rope", error) from None
    return torch.from_numpy(out_TNH)


def pack_mxfp4(blocks: Tensor, scales: Tensor, order: Tensor | None = None) -> Mxfp4:
    """`packed.pack_mxfp4` of a matrix [R, C] or of many [E, R, C], byte for byte.

    `order` int64 [R] says which published row stands where (`packed.gate_up_order`); without it, as published.
    """
    if blocks.dim() not in (3, 4) or scales.shape != blocks.shape[:-1]:
        raise KernelError(f"pack_mxfp4: blocks {list(blocks.shape)} do not go with scales {list(scales.shape)}")
    *leading, rows, num_blocks, _ = blocks.shape
    codes = torch.empty(*leading, rows // TILE, num_blocks, TILE * BLOCK // 2, dtype=torch.uint8)
    tile_scales = torch.empty(*leading, rows // TILE, num_blocks, TILE, dtype=torch.uint8)
    rows_of = None if order is None else order.numpy()
    with refusals("pack_mxfp4"):
        each = zip(*(t if leading else t[None] for t in (blocks, scales, codes, tile_scales)), strict=True)
        for one_blocks, one_scales, one_codes, one_tile_scales in each:
            _native.pack_mxfp4(
                one_blocks.numpy(), one_scales.numpy(), rows_of, one_codes.numpy(), one_tile_scales.numpy()
            )
    return Mxfp4(codes=codes, scales=tile_scales)


def pack_q8(weight: Tensor) -> Q8:
    """`packed.pack_q8`, byte for byte."""
    with refusals("pack_q8"):
        source = (weight.view(torch.uint16) if weight.dtype == torch.bfloat16 else weight).numpy()
        tiles, num_blocks = -(-weight.shape[0] // TILE), -(-weight.shape[-1] // BLOCK)
        codes = torch.empty(tiles, num_blocks, TILE * BLOCK, dtype=torch.uint8)
        multipliers = torch.empty(tiles, num_blocks, TILE, dtype=torch.uint8)
        row_scales = torch.empty(tiles * TILE)
        _native.pack_q8(source, codes.numpy(), multipliers.numpy(), row_scales.numpy())
    return Q8(codes=codes, multipliers=multipliers, row_scales=row_scales)


def pack_bf16(weight: Tensor) -> Bf16:
    """`packed.pack_bf16`, byte for byte."""
    with refusals("pack_bf16"):
        source = weight.to(torch.bfloat16).view(torch.uint16).numpy()
        packed = torch.empty(-(-weight.shape[0] // TILE), weight.shape[-1], TILE, dtype=torch.bfloat16)
        _native.pack_bf16(source, packed.view(torch.uint16).numpy())
    return Bf16(weight=packed)


def _plain(x: Tensor) -> bool:
    return x.dtype == torch.float32 and x.is_cpu and not (x.requires_grad and torch.is_grad_enabled())


@contextmanager
def refusals(op: str) -> Generator[None]:
    """What the native module refuses inside, as a KernelError that names the op."""
    try:
        yield
    except (ValueError, TypeError, RuntimeError) as error:
        raise _refusal(op, error) from None


def _refusal(op: str, error: Exception) -> KernelError:
    return KernelError(f"{op}: {str(error).splitlines()[0]}")
