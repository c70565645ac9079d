"""Norms and rotation of queries and keys within a step's launches."""

import math
from typing import Any, ClassVar

import triton  # type: ignore[import-not-found,unused-ignore]
from torch import Tensor

from scoring.decoder.absent import affine, given
from scoring.decoder.block_pool import BLOCK
from scoring.decoder.kv_cache import KVCache
from scoring.decoder.model import Attention, DecoderLayer
from scoring.decoder.rank_sums import RankSums
from scoring.kernels import decode_prefill


class HeadNorms(RankSums):
    """Part of a `Launcher`: what its kernels read of heads, and the kernel that normalises them."""

    state: KVCache
    wide: int
    own: ClassVar[bool]

    def scatter_normed(self, rows: int, index: int, layer: DecoderLayer, bias: Tensor | None) -> None:
        """Enqueue norms and rotation of heads of the fused product, which may lack its bias; write q and the cache."""
        own, model, b = layer.attention, self.model, self.buffers
        assert own.q_norm is not None
        cache, ranks = self.state.layer(index), 0 if model.team is None else model.team.degree
        together = math.gcd(model.heads, model.kv_heads, 8)
        joint = triton.next_power_of_2(model.heads * model.head_dim) if own.jointly else 0
        if joint and ranks:
            self._square(rows, bias, joint)
        decode_prefill.scatter_normed[(rows, (model.heads + 2 * model.kv_heads) // together)](
            b.qkv, given(bias, b.x), b.q, cache.keys, cache.values, *self._gains_of_heads(own), b.squares,
            *self._tables(layer), b.slots, self._fed()[2], cache.table, *self._paging(), own.q_norm.eps, BLOCK=BLOCK,
            **self._heads(index, layer), DP=self.wide, BH=together, OWN=self.own, BIAS=bias is not None, WP=joint,
            RANKS=ranks, PDL=self.pdl, num_warps=4, **self._launch(),
        )  # fmt: skip

    def _square(self, rows: int, bias: Tensor | None, wide: int) -> None:
        """Sum the squares of queries and of keys, of which each rank has a part; `wide` is at least their number."""
        model, b = self.model, self.buffers
        decode_prefill.squares[(rows, 2)](
            b.qkv, given(bias, b.x), b.squares, H=model.heads, KV=model.kv_heads, D=model.head_dim,
            BIAS=bias is not None, WP=wide, PDL=self.pdl, num_warps=4, **self._launch(),
        )  # fmt: skip
        self._sum(b.squares[:rows])

    def _fed(self) -> tuple[Tensor, Tensor, Tensor]:
        raise NotImplementedError

    def _tables(self, layer: DecoderLayer) -> tuple[Tensor, Tensor]:
        rotary = layer.attention.rotary
        return (self.buffers.x, self.buffers.x) if rotary is None else (rotary.cos, rotary.sin)

    def _paging(self) -> tuple[int, int]:
        """Return the width of the slots' tables, and how many blocks of the cache lie between two heads of a layer."""
        return self.state.width, self.state.apart

    def _gains_of_heads(self, own: Attention) -> tuple[Tensor, Tensor]:
        return affine(own.q_norm, self.buffers.x)[0], affine(own.k_norm, self.buffers.x)[0]

    def _heads(self, index: int, layer: DecoderLayer) -> dict[str, Any]:
        own, rotary = self.model.heads_of(index), layer.attention.rotary
        return {
            "H": own.queries,
            "KV": own.keys,
            "D": own.width,
            "HALF": own.width // 2 if rotary is None else rotary.half,
            "INTERLEAVED": rotary is not None and rotary.interleaved,
            "ROTARY": rotary is not None,
        }
