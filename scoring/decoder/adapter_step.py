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
from scoring.lora.stacks import StaticLowRank

WHOLE = 4096  # inputs up to which each program computes the first product itself, instead of a launch of its own
_PIECE = 1024  # least inputs of a program of that launch
_PROGRAMS = 264  # that it is to have
_BLOCK = 128  # inputs, and outputs, that one reads at once

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
    """Launches the adapters' part of products of up to `rows` rows; `of_slot` [slots + 1] int32 is -1 for the base."""

    def __init__(self, slots: SlotAdapters, of_slot: Tensor, rows: int, whole: int | None = None) -> None:
        self.bank = slots.bank
        self._of_slot, self._rows, self._whole = of_slot, rows, WHOLE if whole is None else whole
        needed = max((self._size(product.static) for product in slots.products), default=0)
        self._held = torch.empty(needed, device=of_slot.device)

    def add(self, product: GroupedLowRank, x: Tensor, out: Tensor, tiles: Tiles, pdl: bool, launch: Launch) -> None:
        """Add to out [rows, N] what the tiles' adapters make of x [rows, K], both dense."""
        own = product.static
        _, parts, rank, inputs = own.down.shape
        whole = inputs <= self._whole
        splits = 1 if whole else self._splits(tiles.count * parts, inputs)
        shared: dict[str, Any] = {
            "TILED": bool(tiles.stride), "QP": _even(tiles.queries), "RP": _even(rank), "BK": _BLOCK,
            "PRECISION": "ieee" if x.dtype == torch.float32 else "tf32", "PDL": pdl, "num_warps": 4,
        }  # fmt: skip
        if not whole:
            low_rank.lower[(tiles.count, parts, splits)](
                x, own.down, self._held, tiles.source, self._of_slot, tiles.stride, self._rows, inputs, rank, parts,
                _piece(inputs, splits), **shared, **launch(),
            )  # fmt: skip
        low_rank.lift[(tiles.count, len(own.spans))](
            x, own.down, self._held, own.up, out, own.spans, tiles.source, self._of_slot, tiles.stride, self._rows,
            inputs, own.up.shape[2], out.shape[1], rank, parts, splits, WHOLE=whole, BN=_BLOCK, **shared, **launch(),
        )  # fmt: skip

    def _splits(self, programs: int, inputs: int) -> int:
        return int(max(1, min(triton.cdiv(_PROGRAMS, programs), triton.cdiv(inputs, _PIECE))))

    def _size(self, own: StaticLowRank) -> int:
        _, parts, rank, inputs = own.down.shape
        return 0 if inputs <= self._whole else self._splits(1, inputs) * self._rows * parts * _even(rank)


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

    def adapt(self, product: GroupedLowRank | None, x: Tensor, out: Tensor) -> None:
        """Add to out [rows, N] what the rows' adapters make of x [rows, K], if the product has any."""
        if self.adapted and self.adapters is not None and product is not None:
            self.adapters.add(product, x, out, self.tiles_of(len(x)), self.pdl, self._launch)

    @contextmanager
    def adapting(self, rows: int) -> Iterator[None]:
        """Run a forward of the model's own modules, of so many rows, whose hooks then add what adapters do."""
        bank = None if self.adapters is None or not self.adapted else self.adapters.bank
        if bank is None:
            yield
            return

        def launch(product: GroupedLowRank, x: Tensor, out: Tensor) -> None:
            if len(x) != rows:
                raise ValueError(f"a product has {len(x)} rows of a forward of {rows}: adapters cannot be told")
            self.adapt(product, x, out)

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


def _piece(inputs: int, splits: int) -> int:
    return int(triton.cdiv(triton.cdiv(inputs, splits), _BLOCK)) * _BLOCK


def _even(count: int) -> int:
    """Size of a side of a matrix product on the device, at least 16."""
    return int(triton.next_power_of_2(max(16, count)))
