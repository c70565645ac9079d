"""Launches over rows that are tokens at positions of their own, several of one slot: chunks of prompts, and drafts."""

import math
from typing import ClassVar

from torch import Tensor

from scoring.decoder.absent import given
from scoring.decoder.block_pool import BLOCK
from scoring.decoder.decode_step import Launcher
from scoring.decoder.model import DecoderLayer
from scoring.kernels import decode_prefill


class TokenRows(Launcher):
    """A `Launcher` whose rows each have a token and a position; keys and values are written before attention."""

    own: ClassVar[bool] = True
    folds: ClassVar[bool] = False
    order: Tensor  # [rows] int32, 0, 1, 2 ...
    tokens: Tensor  # [rows] int32
    positions: Tensor  # [rows] int32

    def scatter(self, rows: int, index: int, layer: DecoderLayer) -> None:
        if layer.attention.q_norm is None:
            super().scatter(rows, index, layer)
        else:
            scatter_normed(self, rows, index, layer, self.positions)

    def _fed(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.order, self.tokens, self.positions


def scatter_normed(launcher: Launcher, rows: int, index: int, layer: DecoderLayer, positions: Tensor) -> None:
    """Enqueue norms and rotation of whole heads of the fused product, and the write to q and the cache."""
    own, model, b = layer.attention, launcher.model, launcher.buffers
    assert own.q_norm is not None
    cache = launcher.state.layer(index)
    together = math.gcd(model.heads, model.kv_heads, 8)
    decode_prefill.scatter_normed[(rows, (model.heads + 2 * model.kv_heads) // together)](
        b.qkv, given(own.qkv.bias, b.x), b.q, cache.keys, cache.values,
        *launcher._gains_of_heads(own), *launcher._tables(layer), b.slots, positions, cache.table,
        *launcher._paging(), own.q_norm.eps, BLOCK=BLOCK, **launcher._heads(layer), DP=launcher.wide, BH=together,
        BIAS=own.qkv.bias is not None, PDL=launcher.pdl, num_warps=4, **launcher._launch(),
    )  # fmt: skip
