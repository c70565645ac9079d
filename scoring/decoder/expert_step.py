"""Launches of a mixture's experts within a step, which a graph can hold: nothing waits for what rows chose."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import triton  # type: ignore[import-not-found,unused-ignore]
from torch import Tensor

from scoring.decoder.absent import given
from scoring.decoder.buffers import Buffers
from scoring.decoder.gemv_config import GemvTile, wide_tile
from scoring.decoder.model import DecoderLayer, DecoderModel, Linear, Mixture, Norm
from scoring.decoder.product_tile import ProductTile
from scoring.decoder.rank_sums import RankSums
from scoring.kernels import decode_experts

#: Tiles of grouped products, gated and down, by the most rows of an expert, on average, that they are for.
TILES = {
    8: (ProductTile(16, 32, 128, 4, 4), ProductTile(16, 64, 128, 4, 4)),
    16: (ProductTile(32, 64, 64, 4, 5), ProductTile(32, 128, 64, 4, 5)),
    32: (ProductTile(64, 64, 64, 4, 4), ProductTile(64, 128, 64, 4, 4)),
    1 << 30: (ProductTile(128, 128, 64, 8, 3), ProductTile(128, 256, 64, 8, 3)),
}
_LEAST_ROWS = 16  # of those tiles
_COUNTED = 1024  # choices that are grouped at a time
_WEIGHTS = 4096  # that a program of four warps of the down product reads at once
_COMBINED = 1024  # outputs of a row that a program adds up


@dataclass
class ExpertBuffers:
    """Scratch tensors of a mixture for steps of up to `rows` rows, of which each chooses so many experts."""

    scores: Tensor  # [rows, X] float32, of the router
    narrow: Tensor  # [rows, X] in the model's dtype: as cuBLAS writes them
    chosen: Tensor  # [rows * chosen] int32
    shares: Tensor  # [rows * chosen] float32
    order: Tensor  # [rows * chosen] int32, places of choices by expert
    tiles: Tensor  # int32
    used: Tensor  # [1] int32, tiles
    outs: Tensor  # [rows * chosen, E]


class ExpertLaunches(RankSums):
    """Part of a `Launcher`: the router's choice, and the experts' products, of few rows and of many."""

    model: DecoderModel
    buffers: Buffers
    precision: str
    tiles: dict[str, GemvTile]
    _first: bool
    _open: Norm | None
    #: Tiles of grouped products; those of one kind keep the order of sums, whatever the rows.
    grouped: ClassVar[dict[int, tuple[ProductTile, ProductTile]]] = TILES

    def reserve_experts(self, rows: int) -> None:
        """Allocate what layers with experts need, if there are any."""
        model, own = self.model, self.model.mixtures
        if not own:
            return
        choices, experts = rows * model.most_chosen, max(len(each.up) for each in own)

        def empty(*shape: int, dtype: torch.dtype = model.dtype) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=model.device)

        self.experts = ExpertBuffers(
            scores=empty(rows, experts, dtype=torch.float32),
            narrow=empty(rows, experts),
            chosen=empty(choices, dtype=torch.int32),
            shares=empty(choices, dtype=torch.float32),
            order=empty(choices, dtype=torch.int32),
            tiles=empty(3 * tiles_of(choices, experts, _LEAST_ROWS), dtype=torch.int32),
            used=empty(1, dtype=torch.int32),
            outs=empty(choices, model.hidden),
        )

    def experts_gemv(self, rows: int, layer: DecoderLayer, mlp: Mixture) -> None:
        """Enqueue a mixture over the residual stream, of a few rows: each reads the weights of its own experts."""
        b, own, norm = self.buffers, self.experts, layer.norm2
        assert norm is not None and norm.kind == "rms"  # of a LayerNorm, every expert would need constants
        self.gemv("router", None, mlp.router, own.scores, rows, norm=norm)
        self._choose(rows, mlp, own.scores, None)
        inputs, inner = mlp.up.shape[2], mlp.inner
        tile = self.tiles.get("experts") or wide_tile(2 * mlp.chosen * inner, inputs, 2)
        decode_experts.gated[tile.grid(inner, rows * mlp.chosen)](
            self._stream, norm.gain, mlp.up, given(mlp.up_bias, b.x), own.chosen, b.inner, inner, inputs, norm.eps,
            BN=tile.rows, BK=tile.inputs, ONCE=inputs <= tile.inputs, NORM=norm.kind, **_gate(mlp), ROWS=rows,
            PDL=self.pdl, num_warps=tile.warps, **self._launch(),
        )  # fmt: skip
        post = layer.post2
        out = self._stream if post is None else b.y
        factor = self.model.residual_scale if post is None else 1.0
        tile = self.tiles.get("mixed") or _down_tile(mlp)
        decode_experts.down[tile.grid(self.model.hidden, rows)](
            b.inner, mlp.down, given(mlp.down_bias, b.x), own.chosen, own.shares, out, self.model.hidden, inner, factor,
            BN=tile.rows, BK=tile.inputs, ADD=post is None and self._first, BIAS=self._adds_bias(mlp),
            CHOSEN=mlp.chosen, CP=triton.next_power_of_2(mlp.chosen), ROWS=rows, PDL=self.pdl, num_warps=tile.warps,
            **self._launch(),
        )  # fmt: skip
        self._sum(out[:rows])
        self._open = post

    def experts_grouped(self, rows: int, mlp: Mixture) -> None:
        """Enqueue a mixture of normed rows into y: each expert that was chosen reads its weights for all its rows."""
        b, own, hidden = self.buffers, self.experts, self.model.hidden
        self.product(b.normed, mlp.router, own.narrow, rows)
        self._choose(rows, mlp, own.narrow, mlp.router.bias)
        choices, (experts, _, inputs) = rows * mlp.chosen, mlp.up.shape
        gated, down = (
            tile.fitting(mlp.up.itemsize, sets)
            for tile, sets in zip(self.expert_tiles(choices, experts), (2, 1), strict=True)
        )
        tiles = tiles_of(choices, experts, gated.rows)
        decode_experts.group[(experts,)](
            own.chosen, own.order, own.tiles, own.used, choices, tiles, BM=gated.rows, BC=_COUNTED, PDL=self.pdl,
            num_warps=4, **self._launch(),
        )  # fmt: skip
        decode_experts.grouped_gated[(tiles * triton.cdiv(mlp.inner, gated.outputs),)](
            b.normed, mlp.up, given(mlp.up_bias, b.x), own.order, own.tiles, own.used, b.inner, mlp.inner, inputs,
            tiles, **_gate(mlp), **self._tile(gated),
        )  # fmt: skip
        decode_experts.grouped_down[(tiles * triton.cdiv(hidden, down.outputs),)](
            b.inner, mlp.down, given(mlp.down_bias, b.x), own.order, own.tiles, own.used, own.shares, own.outs, hidden,
            mlp.inner, tiles, BIAS=self._adds_bias(mlp), **self._tile(down),
        )  # fmt: skip
        decode_experts.combine[(rows, triton.cdiv(hidden, _COMBINED))](
            own.outs, b.y, hidden, BN=_COMBINED, CHOSEN=mlp.chosen, PDL=self.pdl, num_warps=4, **self._launch(),
        )  # fmt: skip

    def expert_tiles(self, choices: int, experts: int) -> tuple[ProductTile, ProductTile]:
        """Tiles of grouped products, gated and down, of the same rows."""
        return next(tiles for most, tiles in self.grouped.items() if choices <= most * experts)

    def gemv(self, name: str, x: Tensor | None, linear: Linear, out: Tensor, rows: int, *, norm: Norm | None = None,
             act: str = "none", add: bool = False, biased: bool = True, factor: float = 1.0) -> None:  # fmt: skip
        """Compute a product of a few rows."""
        raise NotImplementedError

    def product(self, x: Tensor, linear: Linear, out: Tensor, rows: int, add: bool = False) -> None:
        """Compute a product of many rows."""
        raise NotImplementedError

    def _adds_bias(self, mlp: Mixture) -> bool:
        """Return True if this rank adds the bias of the down products."""
        return mlp.down_bias is not None and self._first

    def _choose(self, rows: int, mlp: Mixture, scores: Tensor, bias: Tensor | None) -> None:
        own, experts = self.experts, len(mlp.up)
        decode_experts.choose[(rows,)](
            scores, given(bias, scores), own.chosen, own.shares, own.used, experts, CHOSEN=mlp.chosen,
            XP=triton.next_power_of_2(experts), CP=triton.next_power_of_2(mlp.chosen), RENORMALISED=mlp.renormalised,
            BIAS=bias is not None, PDL=self.pdl, num_warps=1, **self._launch(),
        )  # fmt: skip

    def _tile(self, tile: ProductTile) -> dict[str, Any]:
        return {
            "BM": tile.rows, "BN": tile.outputs, "BK": tile.inputs, "PRECISION": self.precision, "PDL": self.pdl,
            "num_warps": tile.warps, "num_stages": tile.stages, **self._launch(),
        }  # fmt: skip


def _gate(mlp: Mixture) -> dict[str, Any]:
    """Arguments of a gated product's kernel: what it makes of the halves, and where they are."""
    return {
        "alpha": mlp.alpha, "limit": mlp.limit, "ACT": mlp.activation, "CLAMPED": mlp.limit > 0,
        "INTERLEAVED": mlp.interleaved, "BIAS": mlp.up_bias is not None, "CHOSEN": mlp.chosen,
    }  # fmt: skip


def tiles_of(choices: int, experts: int, rows: int) -> int:
    """Most tiles of up to `rows` choices each into which so many choices of experts can fall."""
    return choices // rows + min(experts, choices)


def _down_tile(mlp: Mixture) -> GemvTile:
    """Tile of the down product of single rows, which reads the weights of all chosen experts side by side.

    Wider ones, and twice the weights, were slower on an H200 for the shapes of Qwen3-30B-A3B, Mixtral and gpt-oss-20b.
    """
    sets, inputs = int(triton.next_power_of_2(mlp.chosen)), mlp.inner
    widths = (512, 256)
    wide = next((each for each in widths if -inputs % each <= inputs // 8), widths[-1])
    wide = min(wide, max(16, _WEIGHTS // sets))
    return GemvTile(max(1, _WEIGHTS // (sets * wide)), wide, 4)
