"""Launches over rows that are tokens at positions of their own, several of one slot: chunks of prompts, and drafts."""

from typing import ClassVar

from torch import Tensor

from scoring.decoder.decode_step import Launcher
from scoring.decoder.model import DecoderLayer


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
            self.scatter_normed(rows, index, layer, layer.attention.qkv.bias)

    def _fed(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.order, self.tokens, self.positions
