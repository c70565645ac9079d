"""Encoder products in int8 on CPUs: activations as uint8, one scale a row of the weights, norms and sums in float32.

oneDNN multiplies uint8 by int8 on AVX512-VNNI, AVX-VNNI and AMX; int8 activations, without their units, run in its
reference code, a thousand times slower. Query, key, value, output and up take a fixed range, measured on real text,
so that bias, GELU and residual are part of the product; channels are weighed (`calibration`).
Down takes one scale a token: the outliers behind GELU lose too much under a range for all. No scale depends on the
rows beside a row. T: tokens; weights are [N, K].
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from scoring.encoder.calibration import SMALLEST, Span, smoothing, spans
from scoring.encoder.cpu_ops import INT8, LEAST_GELU, POST, CpuOps, as_bytes
from scoring.encoder.fused_model import EncoderLayer, FusedStack
from scoring.encoder.ops import NONE, Hidden, LayerNorm, Matrix, Packing
from scoring.quantization.int8 import quantize_per_row

_MARGIN = 1.1  # of the ranges that calibration saw


class StaticProduct:
    """Product act(x w^T + b) + residual of a weight whose inputs keep to a span."""

    def __init__(self, weight: Tensor, bias: Tensor, span: Span) -> None:
        smooth = smoothing(weight, span.peak)
        low, high = (min(0.0, float((span.low / smooth).min())), max(0.0, float((span.high / smooth).max())))
        self.scale = max(SMALLEST, _MARGIN * (high - low) / 255)
        self.zero = round(-_MARGIN * low / self.scale)
        self.factor, self.middle = 1 / (smooth * self.scale), torch.full_like(smooth, self.zero + 0.5)
        whole, scale = quantize_per_row(weight.detach().float() * smooth)
        self.scales = scale[:, 0]
        self.zeros = torch.zeros(len(weight), dtype=torch.int64)
        self.bias = bias.detach().float()
        self.weight: Tensor = torch.ops.onednn.qlinear_prepack(whole, [128, weight.shape[1]])

    def __call__(self, x: Tensor, act: int = NONE, residual: Tensor | None = None) -> Tensor:
        values = as_bytes(torch.addcmul(self.middle, x, self.factor).clamp_(0, 255))
        given = (values, self.scale, self.zero, self.weight, self.scales, self.zeros)
        if residual is not None:
            summed: Tensor = torch.ops.onednn.qlinear_pointwise.binary(
                *given, residual, self.bias, 1.0, 0, torch.float32, 1.0, 0, "add", 1.0, "none", [], ""
            )
            return summed
        post, variant = POST[act]
        y: Tensor = torch.ops.onednn.qlinear_pointwise(*given, self.bias, 1.0, 0, torch.float32, post, [], variant)
        return y


class Int8Ops(CpuOps):
    """Operations of a `FusedStack` in int8; `prepare` its layers first, with the texts to calibrate on."""

    def __init__(self, stack: FusedStack, batches: Sequence[Mapping[str, Tensor]]) -> None:
        super().__init__(INT8)
        self._spans = spans(stack, batches)
        self._static: dict[int, StaticProduct] = {}  # by the id of the weight that the layer holds

    def prepare(self, layers: Sequence[EncoderLayer]) -> list[EncoderLayer]:
        return [
            replace(
                layer,
                qkv=self._fixed(layer.qkv, layer.qkv_bias),
                out=self._fixed(layer.out, layer.out_bias),
                up=self._fixed(layer.up, layer.up_bias),
                down=self._take(layer.down, layer.down_bias, LEAST_GELU),
            )
            for layer in layers
        ]

    def _fixed(self, weight: Matrix, bias: Tensor) -> Tensor:
        product = StaticProduct(cast(Tensor, weight), bias, self._spans[id(weight)])
        self._static[id(product.weight)] = product
        return product.weight

    def linear(self, x: Hidden, weight: Matrix, bias: Tensor, act: int, packing: Packing) -> Tensor:
        return self._static[id(weight)](x.wide, act)

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
        static = self._static.get(id(weight))
        if static is None:
            return super().project_add_norm(x, weight, bias, residual, norm, packing, then)
        y = static(x.float(), residual=residual.wide)
        return Hidden(F.layer_norm(y, y.shape[-1:], norm.gamma, norm.beta, norm.eps))
