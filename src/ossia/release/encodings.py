"""How GGUF stores numbers: each of its types that a gpt-oss model needs, made from a tensor.

Shapes: `...` any leading dimensions, N values along the last one, B = N / 32 blocks.
Block layouts: ggml's `block_q8_0` (half-precision scale, 32 signed bytes) and `block_mxfp4` (scale byte, 16 bytes).
"""

from enum import IntEnum

import torch
from torch import Tensor

from ossia.kernels import mxfp4

_BLOCK = 32
_LARGEST_CODE = 127


class GgufType(IntEnum):
    """A type of tensor, under its number in the file."""

    F32 = 0
    F16 = 1
    Q8_0 = 8
    BF16 = 30
    MXFP4 = 39

    @property
    def block(self) -> tuple[int, int]:
        """Values in a block, and the bytes it takes."""
        return _BLOCKS[self]


_BLOCKS = {
    GgufType.F32: (1, 4),
    GgufType.F16: (1, 2),
    GgufType.Q8_0: (_BLOCK, 34),
    GgufType.BF16: (1, 2),
    GgufType.MXFP4: (_BLOCK, 17),
}
_FLOATS = {GgufType.F32: torch.float32, GgufType.F16: torch.float16, GgufType.BF16: torch.bfloat16}


def encode(values: Tensor, kind: GgufType) -> Tensor:
    """The bytes, uint8 [...], of finite `values` [..., N] stored as `kind` (any but MXFP4)."""
    if kind is GgufType.Q8_0:
        return q8_0(values)
    return values.to(_FLOATS[kind]).contiguous().view(torch.uint8)


def q8_0(values: Tensor) -> Tensor:
    """`values` [..., N] in blocks uint8 [..., 34 B]: a scale, largest magnitude / 127 in half precision, and codes.

    A code is the value over the unrounded scale, rounded half away from zero, as ggml's own packing has it.
    """
    values_B32 = values.float().unflatten(-1, (-1, _BLOCK))
    scale_B1 = values_B32.abs().amax(dim=-1, keepdim=True) / _LARGEST_CODE
    inverse_B1 = torch.where(scale_B1 > 0, 1 / scale_B1, 0.0)
    scaled_B32 = values_B32 * inverse_B1
    size_B32 = scaled_B32.abs()
    whole_B32 = size_B32.floor()
    whole_B32 += size_B32 - whole_B32 >= 0.5
    codes_B32 = whole_B32.copysign_(scaled_B32).to(torch.int8)
    return torch.cat((scale_B1.half().view(torch.uint8), codes_B32.view(torch.uint8)), dim=-1).flatten(-2)


def mxfp4_blocks(blocks: Tensor, scales: Tensor) -> Tensor:
    """Blocks uint8 [..., B, 16] and scales uint8 [..., B] of a checkpoint in blocks uint8 [..., 17 B]: the same codes.

    A checkpoint's byte i holds values 2i and 2i + 1; here byte j holds values j (low nibble) and j + 16.
    """
    mxfp4.check_packed(blocks, scales)
    first_B8, second_B8 = blocks[..., :8], blocks[..., 8:]
    even_B8 = (first_B8 & 0x0F) | (second_B8 << 4)
    odd_B8 = (first_B8 >> 4) | (second_B8 & 0xF0)
    codes_B16 = torch.stack((even_B8, odd_B8), dim=-1).flatten(-2)
    return torch.cat((scales.unsqueeze(-1), codes_B16), dim=-1).flatten(-2)
