"""Quantises weights to int8 when a bundle is generated, in the form of `quantization.layout`.

Quantising a widened weight gives the same int8 numbers again, in every dtype that is served: a row's largest number is
rounded to bfloat16, so that 127 times its scale is read back exactly, and no other number is off by half a step.
"""

import torch
from torch import Tensor

from scoring.quantization.int8 import LEAST

_AT_ONCE = 1 << 22  # numbers widened at once, which bounds the float32 copy


def scales(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Scales, float32 [N, 1], one per row, of a weight that will be widened to `dtype`."""
    largest = _told_apart(weight, dtype).abs().amax(1, keepdim=True).bfloat16().float()
    return largest.clamp(min=LEAST, max=torch.finfo(dtype).max) / 127


def quantize(weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Quantize a weight that will be widened to `dtype`: int8 [N, K], symmetric, and its `scales`."""
    scale = scales(weight, dtype)
    return (_told_apart(weight, dtype) / scale).round().clamp(-127, 127).to(torch.int8), scale


def _told_apart(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Weight in float32, for float16 rounded to it first: in rows of tiny numbers it has fewer steps than int8."""
    return (weight.half() if dtype == torch.float16 else weight).float()


def pack(narrow: Tensor) -> Tensor:
    """Pack int8 [N, K] into int32 [N, ceil(K / 4)]."""
    padded = torch.zeros(narrow.shape[0], -(-narrow.shape[1] // 4) * 4, dtype=torch.uint8)
    padded[:, : narrow.shape[1]] = narrow.view(torch.uint8) ^ 128
    return padded.view(torch.int32)


def unpack(packed: Tensor, columns: int) -> Tensor:
    """Unpack int32 [N, ceil(columns / 4)] to int8 [N, columns], on its device."""
    return (packed.view(torch.uint8)[:, :columns] ^ 128).view(torch.int8)


def widen(narrow: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Widen int8 [N, K] with scales [N, 1] to the weight [N, K] in `dtype`, on their device."""
    wide = torch.empty(narrow.shape, dtype=dtype, device=narrow.device)
    count = max(1, _AT_ONCE // narrow.shape[1])
    for start in range(0, narrow.shape[0], count):
        rows = slice(start, start + count)
        wide[rows] = narrow[rows].float() * scale[rows].float()
    return wide
