"""Encoder products in eight bits: those whose inputs are a norm's output, where quantizing costs nothing extra.

Inputs get one scale per token, weights one per row, and channels are weighed (`calibration`). Attention's and GELU's
outputs stay in 16 bits: their outliers cost more accuracy than the faster product is worth
(`benchmarks/results/encoders.json`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from scoring.encoder.calibration import smoothing, spans
from scoring.encoder.ops import Matrix, Narrow
from scoring.encoder.stack import EncoderLayer, FusedStack
from scoring.quantization.int8 import quantize_per_row

FORMATS = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}


def narrow_layers(stack: FusedStack, batches: Sequence[Mapping[str, Tensor]], kind: str = "int8") -> list[EncoderLayer]:
    """Quantize query, key, value and up of a stack's layers to eight bits, with channel peaks measured on `batches`."""
    seen = spans(stack, batches)

    def made(weight: Matrix) -> Narrow:
        wide = cast(Tensor, weight)
        return narrow(wide, seen[id(wide)].peak, FORMATS[kind])

    return [replace(layer, qkv=made(layer.qkv), up=made(layer.up)) for layer in stack.layers]


def narrow(weight: Tensor, peaks: Tensor, kind: torch.dtype) -> Narrow:
    """Quantize a weight [N, K] to eight bits, for inputs with these peaks [K]."""
    wide = weight.detach().float()
    smooth = smoothing(wide, peaks)
    values, scale = quantize_per_row(wide * smooth, kind)
    return Narrow(values, scale[:, 0], 1 / smooth)
