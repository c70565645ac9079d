"""Quantises weights when a bundle is generated, in the form of `quantization.layout`.

Quantising a widened int8 weight gives the same numbers again, in every dtype that is served: a row's largest number is
rounded to bfloat16, so that 127 times its scale is read back exactly, and no other number is off by half a step.
"""

import torch
from torch import Tensor

from scoring.quantization.dequantize import Grid
from scoring.quantization.int8 import LEAST
from scoring.quantization.layout import Made

_SHARES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)  # of a group's largest number, of which the best becomes 7 in int4


def quantize(weight: Tensor, dtype: torch.dtype, kind: Made = "int8", group: int = 0) -> tuple[Tensor, Tensor]:
    """Quantize a weight [N, K] that will be widened to `dtype`: symmetric numbers [N, K], and their scales.

    Scales are float32 [N, 1]; of int4, bfloat16 [N, K / group]. Of float16 the weight is rounded first: in rows of
    tiny numbers it has fewer steps than int8.
    """
    weight = (weight.half() if dtype == torch.float16 else weight).float()
    if kind == "int4":
        return _int4(weight, group)
    largest = weight.abs().amax(1, keepdim=True).bfloat16().float()
    largest = largest.clamp(min=LEAST, max=torch.finfo(dtype).max)
    if kind == "fp8":
        scale = largest / torch.finfo(torch.float8_e4m3fn).max
        return (weight / scale).clamp(-448, 448).to(torch.float8_e4m3fn), scale
    scale = largest / 127
    return (weight / scale).round().clamp(-127, 127).to(torch.int8), scale


def _int4(weight: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Quantize to -8 to 7, each group under the scale that loses least of a few."""
    shaped = weight.view(len(weight), -1, group)
    largest = shaped.abs().amax(2, keepdim=True).clamp(min=LEAST)
    best = torch.full_like(largest, torch.inf)
    scale, numbers = torch.zeros_like(largest), torch.zeros_like(shaped)
    for share in _SHARES:
        tried = (share * largest / 7).bfloat16().float()
        found = (shaped / tried).round().clamp(-8, 7)
        error = ((found * tried - shaped) ** 2).sum(2, keepdim=True)
        better = error < best
        best, scale = torch.where(better, error, best), torch.where(better, tried, scale)
        numbers = torch.where(better, found, numbers)
    return numbers.view_as(weight).to(torch.int8), scale[..., 0].bfloat16()


def pack(narrow: Tensor, kind: Made = "int8") -> Tensor:
    """Pack numbers [N, K] as they are stored: int8 into int32 [N, ceil(K / 4)], int4 [N, K / 8], fp8 as it is."""
    if kind == "fp8":
        return narrow
    if kind == "int4":
        octets = narrow.view(torch.uint8) + 8
        return (octets[:, ::2] | octets[:, 1::2] << 4).contiguous().view(torch.int32)
    padded = torch.zeros(narrow.shape[0], -(-narrow.shape[1] // 4) * 4, dtype=torch.uint8)
    padded[:, : narrow.shape[1]] = narrow.view(torch.uint8) ^ 128
    return padded.view(torch.int32)


def unpack(packed: Tensor, columns: int) -> Tensor:
    """Unpack int32 [N, ceil(columns / 4)] to int8 [N, columns], on its device."""
    return (packed.view(torch.uint8)[:, :columns] ^ 128).view(torch.int8)


def widen(narrow: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Widen numbers [N, K] with scales [N, G] to the weight [N, K] in `dtype`, on their device."""
    return Grid(narrow, scale, (1, narrow.shape[1] // scale.shape[1])).widen(dtype)
