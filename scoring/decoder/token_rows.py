"""Launches over rows that are tokens at positions of their own, several of one slot: chunks of prompts, and drafts."""

import math
from typing import ClassVar

from torch import Tensor

from scoring.decoder.absent import given
from scoring.decoder.block_pool import BLOCK
from scoring.decoder.decode_step import Launcher
from scoring.decoder.model import DecoderLayer, Linear, Norm
from scoring.kernels import decode_prefill


class TokenRows(Launcher):
    """A `Launcher` whose rows each have a token and a position; keys and values are written before attention."""

    own: ClassVar[bool] = True
    order: Tensor  # [rows] int32, 0, 1, 2 ...
    tokens: Tensor  # [rows] int32
    positions: Tensor  # [rows] int32

    def scatter(self, rows: int, index: int, layer: DecoderLayer) -> None:
        own, model, b = layer.attention, self.model, self.buffers
        if own.q_norm is None:
            super().scatter(rows, index, layer)
            return
        together = math.gcd(model.heads, model.kv_heads, 8)
        decode_prefill.scatter_normed[(rows, (model.heads + 2 * model.kv_heads) // together)](
            b.qkv, given(own.qkv.bias, b.x), b.q, self.state.keys[index], self.state.values[index],
            *self._gains_of_heads(own), *self._tables(layer), b.slots, self.positions, self.state.table,
            *self._paging(), own.q_norm.eps, BLOCK=BLOCK, **self._heads(layer), DP=self.wide, BH=together,
            BIAS=own.qkv.bias is not None,
            PDL=self.pdl, num_warps=4, **self._launch(),
        )  # fmt: skip

    def _fed(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.order, self.tokens, self.positions

    def _normed_products(self) -> list[tuple[Norm, Linear]]:
        return []  # only GEMV products have their norms folded in
