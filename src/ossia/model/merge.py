"""An adapter merged into the weights it was made for, tensor by tensor: memory holds one at a time.

Experts in MXFP4 are packed anew where the adapter changes them. Those that it does not change keep their bytes, and so
do blocks of the others whose values come out the same.

Values that lie on a grid of four bits come back to where they were when they move less than half a step and are rounded
to the nearest: most of an adapter would be lost. So in each row as many of those that moved furthest go on to the next
value as it takes to add what was asked for along its own direction. What that leaves of the adapter is counted.

Shapes: E experts, R rows, C columns, B blocks of 32 columns.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ossia.errors import CheckpointError
from ossia.kernels import mxfp4
from ossia.model.adapters import Adapter, LowRank
from ossia.model.checkpoint import Checkpoint
from ossia.model.layouts import parameter_shapes

_BIAS = 127
"""Of a scale byte."""
_RULE = "even"
"""For the scales: a block's stays when its values move a little."""
_LEAST_SHARE, _HALVINGS = 2**-24, 14
"""Of the way to the next value, at which one may go there; and how often the interval up to a half is cut in two."""


@dataclass(slots=True, kw_only=True)
class Repacked:
    """What packing anew did to experts in MXFP4, each of whose two matrices counts by itself."""

    matrices: int = 0
    """That the adapter changes."""
    codes: int = 0
    """In those."""
    changed: int = 0
    """Of these codes, those whose value is another now."""
    asked: float = 0.0
    """Sum of the squares of what the adapter adds."""
    made: float = 0.0
    """The same times what was added, once rounded."""

    @property
    def kept(self) -> float:
        """How much of the adapter is left: 1 for all of it."""
        return self.made / self.asked if self.asked else 1.0


class Merged:
    """The parameters of a model with an adapter merged in, made when they are asked for: a `write.TensorSource`.

    packed: whether experts that are in MXFP4 stay so; else, and where they are not, all experts come in bfloat16.
    Raises CheckpointError where a weight becomes infinite.
    """

    def __init__(self, checkpoint: Checkpoint, adapter: Adapter, *, packed: bool) -> None:
        self.repacked = Repacked()
        self._checkpoint = checkpoint
        self._changes = adapter.changes
        self._names = tuple(parameter_shapes(checkpoint.config, packed=packed and checkpoint.packed))
        self._scales: dict[str, Tensor] = {}
        """Made with the blocks, until they are asked for."""

    def keys(self) -> Iterable[str]:
        """The names of all parameters."""
        return self._names

    def __getitem__(self, name: str) -> Tensor:
        """The parameter `name`. Of a packed pair the blocks are asked for first."""
        weight = name.removesuffix("_blocks").removesuffix("_scales")
        change = self._changes.get(weight)
        if change is None and name in self._checkpoint.specs:
            return self._checkpoint[name]
        if name.endswith("_blocks") and change is not None:
            return self._blocks(weight, change)
        if name.endswith("_scales"):
            return self._scales.pop(weight)
        if change is not None and change.a.ndim == 2:
            return _merged(self._checkpoint[name], change.a, change.b, change.scale, name)
        return self._experts(name, change)

    def _experts(self, name: str, change: LowRank | None) -> Tensor:
        """The weights of all experts [E, R, C]."""
        if self._checkpoint.packed:
            blocks, scales = self._checkpoint[f"{name}_blocks"], self._checkpoint[f"{name}_scales"]
            values = (mxfp4.dequantize(*pair) for pair in zip(blocks, scales, strict=True))
        else:
            values = iter(self._checkpoint[name])
        out_ERC = torch.empty(parameter_shapes(self._checkpoint.config, packed=False)[name], dtype=torch.bfloat16)
        for e, value_RC in enumerate(values):
            if change is None or not change.changes(e):
                out_ERC[e] = value_RC
            else:
                out_ERC[e] = _merged(value_RC, change.a[e], change.b[e], change.scale, f"{name} (expert {e})")
        return out_ERC

    def _blocks(self, weight: str, change: LowRank) -> Tensor:
        """The blocks of all experts [E, R, B, 16]; their scales are kept until they are asked for."""
        blocks, scales = (self._checkpoint[f"{weight}_{half}"].clone() for half in ("blocks", "scales"))
        for e, (blocks_RB, scales_RB) in enumerate(zip(blocks, scales, strict=True)):
            if change.changes(e):
                self._repack(blocks_RB, scales_RB, change.scale * change.b[e] @ change.a[e], f"{weight} (expert {e})")
        self._scales[weight] = scales
        return blocks

    def _repack(self, blocks: Tensor, scales: Tensor, asked: Tensor, name: str) -> None:
        """Add `asked` [R, C] to one matrix in place."""
        before_RC = mxfp4.dequantize(blocks, scales)
        rounded_RC = _rounded(before_RC, asked, name)
        new_blocks, new_scales = mxfp4.quantize(rounded_RC, scale_rule=_RULE, name=name)
        made_RC = mxfp4.dequantize(new_blocks, new_scales) - before_RC
        other_RB = made_RC.unflatten(-1, (-1, mxfp4.BLOCK)).any(dim=-1)
        blocks[other_RB], scales[other_RB] = new_blocks[other_RB], new_scales[other_RB]
        self.repacked.matrices += 1
        self.repacked.codes += made_RC.numel()
        self.repacked.changed += int(made_RC.count_nonzero())
        self.repacked.asked += float(asked.square().sum())
        self.repacked.made += float((asked * made_RC).sum())


def _merged(value: Tensor, a: Tensor, b: Tensor, scale: float, name: str) -> Tensor:
    """value [R, C] + scale · b a, in bfloat16."""
    merged_RC = (value.float() + scale * b @ a).bfloat16()
    if not bool(torch.isfinite(merged_RC).all()):
        raise CheckpointError(f"{name} is not finite with the adapter merged in: the adapter is broken")
    return merged_RC


def _rounded(before: Tensor, asked: Tensor, name: str) -> Tensor:
    """before + asked [R, C], each value rounded to one of its neighbours on the grid of MXFP4.

    It goes on to the one beyond, seen from where it was, if it came further than a share of the way: half of it, or
    what share it takes in its row that as much is added along `asked` as was asked for.
    """
    _, scales_RB = mxfp4.quantize(before + asked, scale_rule=_RULE, name=name)
    unit_RC = torch.exp2(scales_RB.float() - _BIAS).repeat_interleave(mxfp4.BLOCK, dim=-1)
    value_RC = (before + asked) / unit_RC
    grid = torch.tensor(mxfp4.MAGNITUDES)
    magnitude_RC = value_RC.abs().clamp(max=grid[-1])
    index_RC = torch.bucketize(magnitude_RC, grid, right=True) - 1
    below_RC = grid[index_RC] * value_RC.sign()
    above_RC = grid[(index_RC + 1).clamp(max=len(grid) - 1)] * value_RC.sign()
    outward_RC = asked * value_RC > 0
    near_RC = torch.where(outward_RC, below_RC, above_RC)
    step_RC = torch.where(outward_RC, above_RC, below_RC) - near_RC
    way_RC = (value_RC - near_RC).abs() / step_RC.abs().clamp(min=grid[1])
    gain_RC = asked * step_RC * unit_RC
    missing_R = (asked * (before + asked - near_RC * unit_RC)).sum(dim=-1)

    def gained(share_R: Tensor) -> Tensor:
        return (gain_RC * (way_RC > share_R[:, None])).sum(dim=-1)

    enough_R, scarce_R = torch.full((len(before),), _LEAST_SHARE), torch.full((len(before),), 0.5)
    for _ in range(_HALVINGS):
        middle_R = (enough_R * scarce_R).sqrt()
        is_enough_R = gained(middle_R) >= missing_R
        enough_R, scarce_R = (
            torch.where(is_enough_R, middle_R, enough_R),
            torch.where(is_enough_R, scarce_R, middle_R),
        )
    too_much_R = gained(enough_R) - missing_R > missing_R - gained(scarce_R)
    share_R = torch.where(too_much_R, scarce_R, enough_R)
    return (near_RC + step_RC * (way_RC > share_R[:, None])) * unit_RC
