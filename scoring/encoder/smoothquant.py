"""Encoder products in eight bits: those whose inputs are a norm's output, where quantizing costs nothing extra.

Inputs get one scale per token, weights one per row. A norm has a few channels that are far larger than the others and
would cost them precision: each channel is divided by the root of its peak over that of its weights, and the weights
are multiplied by it (SmoothQuant, arXiv:2211.10438, with alpha one half). Attention's and GELU's outputs stay in 16
bits: their outliers cost more accuracy than the faster product is worth (`benchmarks/results/encoders.json`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from scoring.encoder.fused_model import EncoderLayer, FusedStack
from scoring.encoder.ops import Hidden, Matrix, Narrow, Packing, TorchOps
from scoring.quantization.int8 import quantize_per_row

FORMATS = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
_SMALLEST = 1e-5  # of a channel's peak, so that silent channels divide by something


def narrow_layers(stack: FusedStack, batches: Sequence[Mapping[str, Tensor]], kind: str = "int8") -> list[EncoderLayer]:
    """Quantize query, key, value and up of a stack's layers to eight bits, with channel peaks measured on `batches`."""
    seen = _peaks(stack, batches)

    def made(weight: Matrix) -> Narrow:
        wide = cast(Tensor, weight)
        return narrow(wide, seen[id(wide)], FORMATS[kind])

    return [replace(layer, qkv=made(layer.qkv), up=made(layer.up)) for layer in stack.layers]


def narrow(weight: Tensor, peaks: Tensor, kind: torch.dtype) -> Narrow:
    """Quantize a weight [N, K] to eight bits, for inputs with these peaks [K]."""
    wide = weight.detach().float()
    smooth = (peaks.clamp_min(_SMALLEST) / wide.abs().amax(0).clamp_min(_SMALLEST)).sqrt()
    values, scale = quantize_per_row(wide * smooth, kind)
    return Narrow(values, scale[:, 0], 1 / smooth)


class _Watch(TorchOps):
    """Operations in plain torch that record the peak of every channel [K] that a product reads."""

    def __init__(self) -> None:
        self.peaks: dict[int, Tensor] = {}  # by the id of the weight

    def linear(self, x: Hidden, weight: Matrix, bias: Tensor, act: int, packing: Packing) -> Tensor:
        live = x.wide[: int(packing.bounds[-1])]
        peak = live.abs().amax(0).float()
        self.peaks[id(weight)] = torch.maximum(peak, self.peaks.get(id(weight), peak))
        return super().linear(x, weight, bias, act, packing)


@torch.inference_mode()
def _peaks(stack: FusedStack, batches: Sequence[Mapping[str, Tensor]]) -> dict[int, Tensor]:
    watch = _Watch()
    watched = FusedStack(stack.tables, stack.layers, stack.heads, stack.act, watch)
    for batch in batches:
        names: Any = ("input_ids", "attention_mask", "token_type_ids")
        watched(*(batch.get(name) for name in names))  # type: ignore[arg-type]
    return watch.peaks
