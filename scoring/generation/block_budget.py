"""Blocks of a decoder's cache that active rows need beyond their own: at their next step, and until they end.

Between two steps a row's need does not change. So it is counted once, and rows that join meanwhile are added to it:
counted anew for each row of a burst, admission would take longer than the burst's prompts.
"""

from collections.abc import Callable, Iterable
from math import ceil

from scoring.decoder.block_pool import blocks_of
from scoring.decoder.decoder import Decoder
from scoring.generation.sequence import RunningSequence

_SHARE = 0.5  # share of the tokens a row may generate for which it needs room to be admitted

Rows = Iterable[RunningSequence]


class BlockBudget:
    """Budget of `capacity` tokens, in whole blocks, as if each layer kept all; `changed` after each change of a row.

    `piece` tells the most tokens of a row that one step computes.
    """

    def __init__(self, decoder: Decoder, capacity: int, piece: Callable[[RunningSequence], int]) -> None:
        groups, whole = decoder.groups.count, decoder.slots * decoder.tables.width
        self._blocks = min(blocks_of(capacity) * groups, decoder.tables.pool.blocks)
        self.bounded = self._blocks < whole * groups
        self._spare = 2 * groups  # blocks of a row for its next token and a draft behind it
        self._decoder, self._piece = decoder, piece
        self._left = 0  # blocks that active rows leave, once there is a bound
        self._next: int | None = None  # blocks needed at the next step; None until it is counted
        self._whole: int | None = None  # blocks that are expected to be needed until the rows end; None likewise

    def changed(self) -> None:
        """Forget what was counted: rows have advanced, or left their slots."""
        self._next = self._whole = None

    def joined(self, running: RunningSequence) -> None:
        """Count a row that has a slot now."""
        if self._next is not None:
            self._next += self._needed([running])
        if self._whole is not None:
            self._whole += self._expected([running])

    def spares(self, count: int) -> bool:
        """Return True if so many rows may have drafts, by what was left when it was last looked at."""
        return not self.bounded or self._left >= self._spare * count

    def takes(self, rows: Rows, tokens: int, more: int, budget: int) -> bool:
        """Return True if a prompt, in steps of a budget, and half of `more` tokens have room beside rows."""
        if self._whole is None:
            self._whole = self._expected(rows)
        needed = self._decoder.groups.blocks(tokens + ceil(_SHARE * more), budget)
        return self._decoder.tables.pool.used + self._whole + needed <= self._blocks

    def evict(self, rows: Rows) -> int:
        """Evict cached blocks until the rest fits; return the blocks that rows leave of the capacity."""
        if not self.bounded:
            return 0
        if self._next is None:
            self._next = self._needed(rows)
        self._left = self._blocks - self._decoder.tables.pool.used - self._next
        self._decoder.evict(max(self._left, 0))
        return self._left

    def _needed(self, rows: Rows) -> int:
        """Blocks that rows lack for their next step."""
        tables, lengths, count = self._decoder.tables, self._decoder.lengths, 0
        for running in rows:
            length = 1 + max(len(running.ids), lengths[running.slot] + running.drafted)
            if length > tables.room(running.slot):  # of rows that decode, few
                count += tables.more(running.slot, length, self._piece(running))
        return count

    def _expected(self, rows: Rows) -> int:
        """Blocks that rows lack for their prompts and half of what they may generate."""
        tables, lengths, count = self._decoder.tables, self._decoder.lengths, 0
        for running in rows:
            length = 1 + max(len(running.ids), lengths[running.slot] + running.drafted)
            length = max(length, running.row.tokens + ceil(_SHARE * running.most))
            if length > tables.room(running.slot):
                count += tables.more(running.slot, length, self._piece(running))
        return count
