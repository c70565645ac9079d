"""Positions that attention itself reads: distances of tokens (DeBERTa, MPNet) and rotations (ModernBERT).

Each kind has its arithmetic in plain torch, the reference of the kernels in `scoring.kernels.encoder_positions`.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor


@dataclass(frozen=True)
class Distances:
    """Columns of tables by the distance of a query from a key, `-reach` to `reach`; those beyond count as these."""

    listed: tuple[int, ...]  # 2 * reach + 1 columns, rising or falling
    columns: Tensor  # the same, int32 on the model's device

    @property
    def reach(self) -> int:
        """Largest distance that the tables tell apart."""
        return len(self.listed) // 2

    def window(self, length: int) -> tuple[int, int]:
        """First column that sequences of this length read, and how many from there on."""
        far = min(length - 1, self.reach)
        ends = self.listed[self.reach - far], self.listed[self.reach + far]
        return min(ends), abs(ends[1] - ends[0]) + 1

    def at(self, places: Tensor) -> Tensor:
        """Columns [S, S] of queries and keys at these places [S]."""
        apart = (places[:, None] - places[None, :]).clamp(-self.reach, self.reach)
        return self.columns[apart + self.reach].long()


@dataclass(frozen=True)
class Relative:
    """Scores that depend on a distance: products with tables, or a number for each head."""

    distances: Distances
    keys: Tensor | None = None  # [C, H]: what queries are multiplied with
    queries: Tensor | None = None  # [C, H]: what keys are multiplied with
    bias: Tensor | None = None  # [heads, C] float32, added to the scaled products

    @property
    def tables(self) -> list[Tensor]:
        """Tables that take part in products."""
        return [table for table in (self.keys, self.queries) if table is not None]

    def narrowed(self, dtype: torch.dtype) -> "Relative":
        """Copy whose products are in another type."""
        keys, queries = (None if table is None else table.to(dtype) for table in (self.keys, self.queries))
        return replace(self, keys=keys, queries=queries)

    def scale(self, dim: int) -> float:
        """Factor of all products."""
        return 1 / math.sqrt(dim * (1 + len(self.tables)))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, places: Tensor) -> Tensor:
        """Attention of one sequence, each [heads, S, D], whose tokens lie at these places [S]."""
        heads, length, dim = q.shape
        columns = self.distances.at(places).expand(heads, length, length)
        scores = q @ k.transpose(1, 2)
        if self.keys is not None:
            table = self.keys.view(-1, heads, dim).permute(1, 2, 0)  # [heads, D, C]
            scores = scores + (q @ table).gather(2, columns)
        if self.queries is not None:
            table = self.queries.view(-1, heads, dim).permute(1, 2, 0)
            scores = scores + (k @ table).gather(2, columns.transpose(1, 2)).transpose(1, 2)
        scores = scores.float() * self.scale(dim)
        if self.bias is not None:
            scores = scores + self.bias[:, columns[0]]
        return torch.softmax(scores, -1).to(v.dtype) @ v


@dataclass(frozen=True)
class Rotation:
    """Queries and keys turned by their places, and how far tokens see."""

    cos: Tensor  # [P, D / 2] float32
    sin: Tensor
    reach: int = 0  # keys farther away are not seen; 0: all are

    @cached_property
    def half(self) -> int:
        """Pairs of numbers that are turned together."""
        return self.cos.shape[1]

    def turn(self, x: Tensor, places: Tensor) -> Tensor:
        """Turn queries or keys [heads, S, D] at these places [S]."""
        one, other = x.float().chunk(2, -1)
        cos, sin = self.cos[places], self.sin[places]
        return torch.cat((one * cos - other * sin, other * cos + one * sin), -1).to(x.dtype)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, places: Tensor) -> Tensor:
        """Attention of one sequence, each [heads, S, D], whose tokens lie at these places [S]."""
        mask = None
        if self.reach:
            mask = (places[:, None] - places[None, :]).abs() <= self.reach
        return F.scaled_dot_product_attention(self.turn(q, places), self.turn(k, places), v, attn_mask=mask)


Positions = Relative | Rotation
