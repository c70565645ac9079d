"""Tiles of products of many rows, with the stages that a GPU's shared memory holds."""

from dataclasses import dataclass, replace
from functools import cache

import torch

_SHARED, _MARGIN = 99 << 10, 4 << 10  # bytes of shared memory that any such GPU gives a program; what it needs beside


@dataclass(frozen=True)
class ProductTile:
    """Tile of a product: rows, outputs and inputs of a program's step, and how it is launched."""

    rows: int
    outputs: int
    inputs: int
    warps: int
    stages: int

    def fitting(self, item: int, sets: int = 1) -> "ProductTile":
        """Return it with the stages that fit, for numbers of `item` bytes and so many weights side by side."""
        stage = (self.rows + sets * self.outputs) * self.inputs * item
        return replace(self, stages=max(1, min(self.stages, shared_bytes() // stage)))


@cache
def shared_bytes() -> int:
    """Bytes of shared memory that a program may take."""
    if not torch.cuda.is_available():
        return _SHARED
    return int(getattr(torch.cuda.get_device_properties(0), "shared_memory_per_block_optin", _SHARED)) - _MARGIN
