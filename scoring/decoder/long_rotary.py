"""Sequences whose rotary positions differ once they are long (longrope): which of a model's two tables a slot uses.

A sequence of up to `steady` tokens is turned by the first table, a longer one by the second, all of its tokens anew:
that is how the model was trained. So a slot keeps to the table that its tokens were opened with, and one that grows
past `steady` is opened again.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from scoring.decoder.model import Rotary

_SALT = "\0long"  # behind the salt of long sequences, whose keys the others cannot use


class LongRotary:
    """Table of each slot of a decoder, as the host knows it; `steady` 0: the model has only one."""

    def __init__(self, steady: int, slots: int) -> None:
        self.steady = steady
        self._long = [False] * slots

    def is_long(self, ids: Sequence[int]) -> bool:
        """True if a sequence with that prompt uses the second table."""
        return 0 < self.steady < len(ids)

    def salt(self, ids: Sequence[int], salt: str | None) -> str | None:
        """Salt of a sequence's prefixes, None for none."""
        return salt + _SALT if salt is not None and self.is_long(ids) else salt

    def open(self, slot: int, ids: Sequence[int]) -> bool:
        """Note a slot's new sequence; True if it uses the second table."""
        self._long[slot] = self.is_long(ids)
        return self._long[slot]

    def is_due(self, slot: int, length: int) -> bool:
        """True if the next token of a slot makes its sequence a long one."""
        return 0 < self.steady <= length and not self._long[slot]


def rows_of(rotary: Rotary, positions: Tensor, long: Tensor) -> Tensor:
    """Rows of the tables for tokens [T] at positions, of slots with a 1 in `long` if they use the second table."""
    return positions + long.to(torch.int64) * rotary.long if rotary.long else positions
