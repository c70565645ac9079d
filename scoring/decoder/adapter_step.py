"""Adapters' low-rank products within a step's launches, which a graph can hold: rows of any adapters at once."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import triton  # type: ignore[import-not-found,unused-ignore]
from torch import Tensor

from scoring.decoder.buffers import Buffers
from scoring.decoder.gemv_config import GEMV_ROWS
from scoring.decoder.low_rank import SlotAdapters
from scoring.kernels import low_rank
from scoring.lora.bank import GroupedLowRank
from scoring.lora.stacks import SPAN, StaticLowRank

_PIECE, _LONG_PIECE = 1024, 4096  # inputs of a program of the first product, of a row and of a tile
_BLOCK = 128  # inputs of a tile that are read at once
_RANKS = 128  # bytes of a rank's numbers that are: 64 KiB of a span's columns, of the 99 that any such GPU has


#: Returns the launch options of the next kernel.
Launch = Callable[[], dict[str, Any]]


@dataclass(frozen=True)
class Tiles:
    """Rows of a step by slot: `count` tiles of up to `queries` rows.

    `source` [3 or more, stride] int32 has first row, number of rows and slot of each; of single rows (stride 0), their
    slots [count].
    """

    count: int
    queries: int
    source: Tensor
    stride: int = 0


class AdapterStep:
    """Launches the adapters' part of products of up to `rows` rows; `of_slot` [slots + 1] int32 is -1 for the base.

    In two products: `lower` of a product's inputs, into memory that `lift` of its outputs reads; only then the next.
    """

    def __init__(self, slots: SlotAdapters, of_slot: Tensor, rows: int) -> None:
        self.bank = slots.bank
        self._of_slot, self._rows = of_slot, rows
        needed = max((self._size(product.static) for product in slots.products), default=0)
        self._held = torch.empty(needed, device=of_slot.device)

    def lower(self, product: GroupedLowRank, x: Tensor, tiles: Tiles, pdl: bool, launch: Launch) -> None:
        """Take x [rows, K], dense, to the rank of the tiles' adapters."""
        own = product.static
        _, parts, rank, inputs = own.down.shape
        shared = _shared(rank, tiles, x, pdl)
        low_rank.lower[(tiles.count, parts * triton.cdiv(rank, shared["RP"]), _splits(inputs, tiles))](
            x, own.down, self._held, tiles.source, self._of_slot, tiles.stride, self._rows, inputs, rank, parts,
            PIECE=_piece(tiles), BK=_BLOCK, **shared, **launch(),
        )  # fmt: skip

    def lift(self, product: GroupedLowRank, out: Tensor, tiles: Tiles, pdl: bool, launch: Launch) -> None:
        """Add to out [rows, N], dense, what `lower` left."""
        own = product.static
        _, parts, rank, inputs = own.down.shape
        splits = _splits(inputs, tiles)
        low_rank.lift[(tiles.count, len(own.spans))](
            self._held, own.up, out, own.spans, tiles.source, self._of_slot, tiles.stride, self._rows,
            own.up.shape[2], out.shape[1], rank, parts, splits, SP=triton.next_power_of_2(splits), BN=SPAN,
            **_shared(rank, tiles, out, pdl), **launch(),
        )  # fmt: skip

    def _size(self, own: StaticLowRank) -> int:
        _, parts, rank, inputs = own.down.shape
        return int(triton.cdiv(inputs, _PIECE)) * self._rows * parts * _even(rank)


class AdaptedLaunches:
    """Part of a `Launcher`: what adapters add to the outputs of its products, in steps that have rows with one."""

    adapters: AdapterStep | None = None
    adapted = False  # the step that is enqueued or replayed has such rows
    buffers: Buffers
    pdl: bool

    @property
    def gemv_rows(self) -> int:
        """Rows up to which a step's products are Triton's, whose fused neighbours leave adapters no place."""
        return 0 if self.adapted else GEMV_ROWS

    def lower(self, product: GroupedLowRank | None, x: Tensor) -> None:
        """Begin to compute what the rows' adapters make of x [rows, K], if the product has any."""
        if self.adapted and self.adapters is not None and product is not None:
            self.adapters.lower(product, x, self.tiles_of(len(x)), self.pdl, self._launch)

    def lift(self, product: GroupedLowRank | None, out: Tensor) -> None:
        """Add to out [rows, N] what the rows' adapters make of the product's inputs."""
        if self.adapted and self.adapters is not None and product is not None:
            self.adapters.lift(product, out, self.tiles_of(len(out)), self.pdl, self._launch)

    @contextmanager
    def adapting(self, rows: int) -> Iterator[None]:
        """Run a forward of `rows` rows by the model's own modules, whose hooks add the adapters' products."""
        bank = None if self.adapters is None or not self.adapted else self.adapters.bank
        if bank is None:
            yield
            return

        def launch(product: GroupedLowRank, x: Tensor, out: Tensor) -> None:
            if len(x) != rows:
                raise ValueError(f"a product has {len(x)} rows of a forward of {rows}: adapters cannot be told")
            self.lower(product, x)
            self.lift(product, out)

        bank.launch = launch
        try:
            yield
        finally:
            bank.launch = None

    def tiles_of(self, rows: int) -> Tiles:
        """Return the rows of a step by slot."""
        return Tiles(rows, 1, self.buffers.slots)

    def _launch(self) -> dict[str, Any]:
        """Launch options of the next kernel."""
        raise NotImplementedError


def _piece(tiles: Tiles) -> int:
    return _LONG_PIECE if tiles.stride else _PIECE


def _splits(inputs: int, tiles: Tiles) -> int:
    return int(triton.cdiv(inputs, _piece(tiles)))


def _shared(rank: int, tiles: Tiles, like: Tensor, pdl: bool) -> dict[str, Any]:
    ranks = _even(rank) if tiles.stride else triton.next_power_of_2(rank)
    return {
        "TILED": bool(tiles.stride), "QP": _even(tiles.queries), "HP": _even(rank), "PDL": pdl,
        "RP": min(ranks, _RANKS // like.itemsize),
        "PRECISION": "ieee" if like.dtype == torch.float32 else "tf32", "num_warps": 4,
    }  # fmt: skip


def _even(count: int) -> int:
    """Size of a side of a matrix product on the device, at least 16."""
    return int(triton.next_power_of_2(max(16, count)))
