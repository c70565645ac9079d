"""Positions that attention reads, in an OpenVINO graph.

B: rows; S: longest row, whose tokens lie at 0 to S; D: a head's width; W: columns of tables that S tokens reach.
"""

from typing import Any

import numpy as np
import torch
from openvino import opset15 as ops
from torch import Tensor

from scoring.encoder.openvino_inputs import NEVER
from scoring.encoder.positions import Positions, Relative, Rotation


class PositionNodes:
    """Nodes that layers with equal positions share; `inputs` come to those of the graph.

    Inputs: `columns` [S], the numbers from 0; `window` [W], columns of tables; `by_query` and `by_key` [S * S], where
    among products [S, W] of one side with the tables that of a query (major) and a key lies; `apart` [S, S], columns.
    """

    def __init__(self, layers: list[Positions], mask: Any, heads: int, dim: int) -> None:
        self._mask, self._heads, self._dim = mask, heads, dim
        shapes: dict[str, list[int]] = {}
        for each in layers:
            if isinstance(each, Rotation):
                shapes["columns"] = [-1]
            else:
                shapes |= {"window": [-1]} if each.tables else {}
                shapes |= {"by_query": [-1]} if each.keys is not None else {}
                shapes |= {"by_key": [-1]} if each.queries is not None else {}
                shapes |= {"apart": [-1, -1]} if each.bias is not None else {}
        self.inputs = {name: ops.parameter(shape, np.int32, name=name) for name, shape in shapes.items()}
        distances = [each.distances for each in layers if isinstance(each, Relative)]
        self.distances = distances[0] if distances else None
        self._made: dict[tuple[str, int], Any] = {}

    def attend(self, q: Any, k: Any, v: Any, positions: Positions | None) -> Any:
        """Attention of padded q, k and v, each [B, heads, S, D]."""
        mask, scale = self._mask, self._dim**-0.5
        if isinstance(positions, Rotation):
            q, k = self._turned(q, positions), self._turned(k, positions)
            mask = self._once("mask", positions.reach, lambda: self._seen(positions.reach)) if positions.reach else mask
        elif positions is not None:
            scale = positions.scale(self._dim)
            mask = self._distant(q, k, positions, scale)
        return ops.scaled_dot_product_attention(q, k, v, mask, _number(scale), causal=False)

    def _once(self, name: str, key: int, make: Any) -> Any:
        if (name, key) not in self._made:
            self._made[name, key] = make()
        return self._made[name, key]

    def _turned(self, x: Any, rotation: Rotation) -> Any:
        """Queries or keys turned, in the one form that OpenVINO knows to be a single operation."""
        cos, sin = (
            self._once(name, id(table), lambda table=table: self._angles(table))
            for name, table in (("cos", rotation.cos), ("sin", rotation.sin))
        )
        half = self._dim // 2
        one, other = ops.variadic_split(x, _whole(3), _shape(half, half)).outputs()
        swapped = ops.concat([ops.multiply(other, _number(-1.0)), one], -1)
        return ops.add(ops.multiply(x, cos), ops.multiply(swapped, sin))

    def _angles(self, table: Tensor) -> Any:
        """Rows [1, 1, S, D] of a table [P, D / 2]."""
        both = _constant(torch.cat((table, table), -1)[None, None])
        return ops.gather(both, self.inputs["columns"], _whole(2))

    def _seen(self, reach: int) -> Any:
        """Mask [B, 1, S, S] of keys that are no farther than `reach`."""
        columns = self.inputs["columns"]
        apart = ops.absolute(ops.subtract(ops.unsqueeze(columns, _whole(1)), ops.unsqueeze(columns, _whole(0))))
        far = ops.greater(apart, ops.constant(np.array(reach, dtype=np.int32)))
        return ops.add(ops.select(far, _number(NEVER), _number(0.0)), self._mask)

    def _distant(self, q: Any, k: Any, relative: Relative, scale: float) -> Any:
        """Mask [B, heads, S, S] with what distances add to the scores."""
        total = self._mask
        if (bias := relative.bias) is not None:
            total = self._once("bias", id(relative), lambda: ops.add(self._mask, self._bias(bias)))
        for side, table, name in ((q, relative.keys, "by_query"), (k, relative.queries, "by_key")):
            if table is not None:
                total = ops.add(self._products(side, table * scale, name), total)
        return total

    def _bias(self, bias: Tensor) -> Any:
        return ops.unsqueeze(ops.gather(_constant(bias), self.inputs["apart"], _whole(1)), _whole(0))

    def _products(self, side: Any, table: Tensor, name: str) -> Any:
        """Products of one side with a table [C, H], at each query and key: [B, heads, S, S]."""
        near = ops.gather(_constant(table), self.inputs["window"], _whole(0))
        near = ops.reshape(near, _shape(-1, self._heads, self._dim), False)
        found = ops.matmul(side, ops.transpose(near, _shape(1, 2, 0)), False, False)  # [B, heads, S, W]
        found = ops.reshape(found, _shape(0, 0, -1), True)
        found = ops.gather(found, self.inputs[name], _whole(2))
        length = ops.gather(ops.shape_of(side), _shape(2), _whole(0))
        return ops.reshape(found, ops.concat([_shape(0, 0), length, length], 0), True)


def _constant(value: Tensor) -> Any:
    return ops.constant(value.detach().float().contiguous().numpy())


def _number(value: float) -> Any:
    return ops.constant(np.float32(value))


def _whole(value: int) -> Any:
    return ops.constant(np.array(value, dtype=np.int64))


def _shape(*sizes: int) -> Any:
    return ops.constant(np.array(sizes, dtype=np.int64))
