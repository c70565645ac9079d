"""Calibration: the ranges of inputs of an encoder's products on given batches, and SmoothQuant's scales from them.

A few channels are far larger than the others and would cost them precision in eight bits: each channel is divided by
the root of its peak over that of its weights, and the weights are multiplied by it (arXiv:2211.10438, with alpha one
half). T: tokens; weights are [N, K].
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoring.encoder.ops import Hidden, LayerNorm, Matrix, Packing, TorchOps
from scoring.encoder.stack import FusedStack

SMALLEST = 1e-5  # of a peak or a scale, so that silent channels divide by something


@dataclass
class Span:
    """Least and largest value of each channel [K] that a product reads."""

    low: Tensor
    high: Tensor

    @property
    def peak(self) -> Tensor:
        """Largest magnitude of each channel [K]."""
        return torch.maximum(self.high, -self.low)

    def take(self, x: Tensor) -> None:
        """Widen to the values of x [T, K]."""
        self.low, self.high = torch.minimum(self.low, x.amin(0)), torch.maximum(self.high, x.amax(0))


def smoothing(weight: Tensor, peak: Tensor) -> Tensor:
    """Factor [K] that a weight [N, K] is multiplied by, and its inputs, which reach this peak [K], are divided by."""
    return (peak.clamp_min(SMALLEST) / weight.abs().amax(0).clamp_min(SMALLEST)).sqrt()


@torch.inference_mode()
def spans(stack: FusedStack, batches: Sequence[Mapping[str, Tensor]]) -> dict[int, Span]:
    """Spans of all products' inputs over some batches, by the id of the weight."""
    watch = _Watch()
    watched = stack.over(watch)
    for batch in batches:
        names: Any = ("input_ids", "attention_mask", "token_type_ids")
        watched(*(batch.get(name) for name in names))  # type: ignore[arg-type]
    return watch.seen


class _Watch(TorchOps):
    """Operations in plain torch that record the span of every channel that a product reads."""

    def __init__(self) -> None:
        self.seen: dict[int, Span] = {}  # by the id of the weight

    def _take(self, x: Tensor, weight: Matrix, packing: Packing) -> None:
        live = x[: int(packing.bounds[-1])].float()
        self.seen.setdefault(id(weight), Span(live[0], live[0])).take(live)

    def linear(self, x: Hidden, weight: Matrix, bias: Tensor, act: int, packing: Packing) -> Tensor:
        self._take(x.wide, weight, packing)
        return super().linear(x, weight, bias, act, packing)

    def project_add_norm(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        residual: Hidden,
        norm: LayerNorm,
        packing: Packing,
        then: Matrix | None = None,
    ) -> Hidden:
        self._take(x, weight, packing)
        return super().project_add_norm(x, weight, bias, residual, norm, packing, then)

    def gated(self, x: Hidden, weight: Tensor, bias: Tensor | None, act: int, packing: Packing) -> Tensor:
        self._take(x.wide, weight, packing)
        return super().gated(x, weight, bias, act, packing)

    def project_add(
        self, x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor, norm: LayerNorm, packing: Packing, last: bool
    ) -> tuple[Tensor, Hidden]:
        self._take(x, weight, packing)
        return super().project_add(x, weight, bias, residual, norm, packing, last)
