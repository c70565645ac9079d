"""An encoder's layers as an OpenVINO graph over packed tokens, in floats or with int8 products.

Products of int8 layers take their inputs as uint8 in a range that real text reached, channels weighed (`calibration`),
and weights as int8, one scale a row. Behind GELU a few units reach far beyond all others and would widen that range for
every token: those of each layer stay in floats. T: live tokens; H: hidden size; D: a head's width; S: longest row.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import openvino
from openvino import opset15 as ops
from torch import Tensor

from scoring.encoder.calibration import SMALLEST, Span, smoothing
from scoring.encoder.openvino_positions import PositionNodes
from scoring.encoder.ops import GELU, NONE, RELU, LayerNorm, Tables
from scoring.encoder.positions import Positions
from scoring.encoder.pre_norm import PreNormLayer, PreNormStack
from scoring.encoder.stack import EncoderLayer, FusedStack
from scoring.quantization.int8 import quantize_per_row

_FAR, _SHARE = 32, 8  # units of a layer that stay in floats, but no more than a part in so many
_LEVELS = 256
_FIRST = np.array(0, dtype=np.int64)  # axis of tokens
Layer = EncoderLayer | PreNormLayer


class EncoderGraph:
    """Graph of a stack's layers; with `spans` of its products' inputs, by the id of the weight, these run in int8.

    Inputs: `words` [T, H], embeddings; `positions` and `types` [T] int32, rows of the other tables; `places`
    [B, heads, S] int32, where each query lies among the vectors of D of packed [T, 3H]; `tokens` [T, heads] int32,
    where each token's context lies among those of [B, heads, S, D]; `mask` [B, 1, 1, S] float32, added to the scores;
    those of `positions_read`. Absent are those that the stack has no use for. Output: hidden states [T, H].
    """

    def __init__(self, stack: FusedStack, spans: Mapping[int, Span] | None) -> None:
        self._spans = spans
        self._act = stack.act
        self._heads = heads = stack.heads
        layers: Sequence[Layer] = stack.pre_norm if isinstance(stack, PreNormStack) else stack.layers
        self._width = width = layers[0].out.shape[0]
        shapes = {
            "words": [-1, width],
            "positions": [-1],
            "types": [-1],
            "places": [-1, heads, -1],
            "tokens": [-1, heads],
            "mask": [-1, 1, 1, -1],
        }
        for name, table in (("positions", stack.tables.positions), ("types", stack.tables.types)):
            if table is None:
                del shapes[name]
        kinds = {"words": np.float32, "mask": np.float32}
        self._inputs = {
            name: ops.parameter(shape, kinds.get(name, np.int32), name=name) for name, shape in shapes.items()
        }
        read = [layer.positions for layer in layers if layer.positions is not None]
        self.positions = PositionNodes(read, self._inputs["mask"], heads, width // heads)
        self._inputs |= self.positions.inputs
        x = self._embeddings(stack.tables)
        x = self._pre_norm(x, stack.pre_norm) if isinstance(stack, PreNormStack) else self._post_norm(x, stack.layers)
        self.model = openvino.Model([ops.result(x)], [*self._inputs.values()], "encoder")

    def _embeddings(self, tables: Tables) -> Any:
        x = self._inputs["words"]
        for name, table in (("positions", tables.positions), ("types", tables.types)):
            if table is not None:
                x = ops.add(x, ops.gather(_constant(table), self._inputs[name], ops.constant(_FIRST)))
        return _norm(x, tables.norm)

    def _post_norm(self, x: Any, layers: Sequence[EncoderLayer]) -> Any:
        for layer in layers:
            x = _norm(self._attended(x, layer, x), layer.attention_norm)
            x = _norm(self._mlp(x, layer, x), layer.output_norm)
        return x

    def _pre_norm(self, x: Any, layers: Sequence[PreNormLayer]) -> Any:
        total = x
        for layer in layers:
            total = self._attended(x, layer, total)
            total = self._mlp(_norm(total, layer.norm), layer, total)
            x = _norm(total, layer.following)
        return x

    def _attended(self, x: Any, layer: Layer, total: Any) -> Any:
        """Attention of x [T, H] added to a sum."""
        qkv = self._product(x, cast(Tensor, layer.qkv), layer.qkv_bias)
        return ops.add(self._product(self._attention(qkv, layer.positions), layer.out, layer.out_bias), total)

    def _attention(self, qkv: Any, positions: Positions | None) -> Any:
        """Attention over packed [T, 3H]: the copy that brings heads together also pads, and the way back packs."""
        vectors = ops.reshape(qkv, _shape(-1, self._width // self._heads), False)
        parts = []
        for part in range(3):
            places = ops.add(self._inputs["places"], ops.constant(np.array(part * self._heads, dtype=np.int32)))
            parts.append(ops.gather(vectors, places, ops.constant(_FIRST)))
        query, key, value = parts
        padded = self.positions.attend(query, key, value, positions)
        flat = ops.reshape(padded, _shape(-1, self._width // self._heads), False)
        packed = ops.gather(flat, self._inputs["tokens"], ops.constant(_FIRST))
        return ops.reshape(packed, _shape(-1, self._width), False)

    def _mlp(self, x: Any, layer: Layer, total: Any) -> Any:
        """Two products of x [T, H] around the activation, far units apart where they are int8, added to a sum.

        Sums are nested so that each product adds what was there before it.
        """
        up, down = cast(Tensor, layer.up), layer.down
        if self._spans is None:
            return ops.add(self._plain(self._up(x, layer), down, layer.down_bias), total)
        span = self._spans[id(down)]
        order, count = span.peak.argsort(), min(_FAR, len(span.peak) // _SHARE)
        near, far = (part.sort().values for part in (order[:-count], order[-count:]))
        far_up = self._up(x, layer, far)
        near_up = self._up(x, layer, near, self._spans[id(up)])
        rest = Span(span.low[near], span.high[near])
        near_down = self._int8(near_up, down[:, near], layer.down_bias, rest, behind=not layer.gated)
        return ops.add(near_down, ops.add(self._plain(far_up, down[:, far], None), total))

    def _up(self, x: Any, layer: Layer, units: Tensor | None = None, span: Span | None = None) -> Any:
        """Activated product of some hidden units, all unless told, in int8 with a span of x."""
        acts = (self._act, NONE) if layer.gated else (self._act,)  # what is gated has no activation of its own
        weights = cast(Tensor, layer.up).chunk(len(acts))
        biases = [None] * len(acts) if layer.up_bias is None else layer.up_bias.chunk(len(acts))
        found = []
        for act, weight, bias in zip(acts, weights, biases, strict=True):
            some = weight if units is None else weight[units]
            add = bias if units is None or bias is None else bias[units]
            found.append(self._plain(x, some, add, act) if span is None else self._int8(x, some, add, span, act))
        return ops.multiply(*found) if layer.gated else found[0]

    def _product(self, x: Any, weight: Tensor, bias: Tensor) -> Any:
        if self._spans is None:
            return self._plain(x, weight, bias)
        return self._int8(x, weight, bias, self._spans[id(weight)])

    def _plain(self, x: Any, weight: Tensor, bias: Tensor | None, act: int = NONE) -> Any:
        return _finish(ops.matmul(x, _constant(weight), False, True), bias, act)

    def _int8(
        self, x: Any, weight: Tensor, bias: Tensor | None, span: Span, act: int = NONE, behind: bool = False
    ) -> Any:
        """Product of x in int8; `behind` says that x comes straight from another product, which then rounds it too."""
        smooth = smoothing(weight, span.peak)
        low, high = min(0.0, float((span.low / smooth).min())), max(0.0, float((span.high / smooth).max()))
        width = max(SMALLEST, high - low)
        rounded = _rounded(x, smooth, low, width) if behind else _weighed_and_rounded(x, smooth, low, width)
        whole, scale = quantize_per_row(weight.detach().float() * smooth)
        taken = ops.multiply(ops.convert(_constant(whole), np.float32), _constant(scale.float()))
        # What is multiplied lies above zero; what it is above `low` belongs to the bias, so that nothing is subtracted.
        below = low * (whole.float() * scale).sum(1)
        return _finish(ops.matmul(rounded, taken, False, True), below if bias is None else bias + below, act)


def _rounded(x: Any, smooth: Tensor, low: float, width: float) -> Any:
    """Whole numbers from 0 for x [T, K], each channel in a range of its own."""
    channels = [_constant((edge * smooth)[None]) for edge in (low, low + width)]
    return ops.fake_quantize(x, *channels, np.float32(0), np.float32(width), _LEVELS)


def _weighed_and_rounded(x: Any, smooth: Tensor, low: float, width: float) -> Any:
    """The same numbers, in one operation with the norm's own scales.

    OpenVINO would fold the weighing into a range for each channel, which runs by itself and takes several times as
    long; the minimum, which takes nothing that rounding leaves, keeps it from that.
    """
    weighed = ops.minimum(ops.multiply(x, _constant((1 / smooth)[None])), np.float32(low + width))
    return ops.fake_quantize(
        weighed, np.float32(low), np.float32(low + width), np.float32(0), np.float32(width), _LEVELS
    )


def _finish(y: Any, bias: Tensor | None, act: int) -> Any:
    y = y if bias is None else ops.add(y, _constant(bias[None]))
    if act == NONE:
        return y
    return ops.gelu(y, "erf") if act == GELU else ops.relu(y) if act == RELU else ops.swish(y)


def _norm(x: Any, norm: LayerNorm) -> Any:
    level = ops.mvn(x, ops.constant(np.array([-1])), True, norm.eps, "inside_sqrt")
    return ops.add(ops.multiply(level, _constant(norm.gamma[None])), _constant(norm.beta[None]))


def _constant(value: Tensor) -> Any:
    return ops.constant(value.detach().contiguous().numpy())


def _shape(*sizes: int) -> Any:
    return ops.constant(np.array(sizes, dtype=np.int64))


def compiled(graph: EncoderGraph, threads: int, bfloat16: bool, calls: int = 1) -> Any:
    """Compile for some calls at a time on `threads` threads in all; products but int8 are in bfloat16 or float32.

    Raises RuntimeError where OpenVINO cannot.
    """
    settings: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": calls,
        "PERFORMANCE_HINT": "LATENCY" if calls == 1 else "THROUGHPUT",
        "INFERENCE_PRECISION_HINT": "bf16" if bfloat16 else "f32",
        "ENABLE_CPU_PINNING": False,  # other processes share the cores
    }
    return openvino.Core().compile_model(graph.model, "CPU", settings)
