"""Blocks of a paged KV cache: which are free, how many sequences use each, and which are kept for their contents."""

import heapq

from scoring.errors import DeviceFull

BLOCK = 64  # tokens: as many as one iteration of the decode attention kernel reads, so that it reads one block


def blocks_of(tokens: int) -> int:
    """Number of blocks that hold `tokens` tokens."""
    return -(-tokens // BLOCK)


class BlockPool:
    """Allocator with reference counts; the same calls give the same blocks, so that ranks need not tell each other.

    A block is in use (users > 0), kept for its contents (idle), or free. Idle blocks are taken when none is free, the
    least recently used first.
    """

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self.freed: list[int] = []  # blocks freed since somebody last emptied this list; some may be in use again
        self._users = [0] * blocks
        self._free = list(range(blocks))  # a heap, with blocks that were taken out of turn
        self._is_free = bytearray(b"\1") * blocks
        self._idle: dict[int, None] = {}  # least recently used first
        self._count = blocks  # free blocks

    @property
    def available(self) -> int:
        """Number of blocks that can be taken: free ones and idle ones."""
        return self._count + len(self._idle)

    @property
    def used(self) -> int:
        """Number of blocks that sequences use."""
        return self.blocks - self.available

    @property
    def idle(self) -> int:
        """Number of blocks kept for their contents alone."""
        return len(self._idle)

    def users(self, block: int) -> int:
        """Number of sequences that use a block."""
        return self._users[block]

    def is_idle(self, block: int) -> bool:
        """Return True for a block that is kept for its contents alone."""
        return block in self._idle

    def oldest(self) -> int:
        """Return the least recently used idle block."""
        return next(iter(self._idle))

    def take(self, block: int = -1) -> int:
        """Give a free block to one sequence: this one if given, else the lowest; raises DeviceFull without any."""
        while block < 0:
            if not self._free:
                raise DeviceFull(f"All {self.blocks} blocks of the cache are in use.", "Send the request again later.")
            if not self._is_free[self._free[0]]:
                heapq.heappop(self._free)
                continue
            block = heapq.heappop(self._free)
        self._is_free[block] = 0
        self._count -= 1
        self._users[block] = 1
        return block

    def share(self, block: int) -> None:
        """Count one more sequence that uses a block, which is in use or idle."""
        self._users[block] += 1
        self._idle.pop(block, None)

    def drop(self, block: int, keep: bool) -> None:
        """Count one sequence less; of the last one, the block becomes idle if it is to be kept, else free."""
        self._users[block] -= 1
        if self._users[block]:
            return
        if keep:
            self._idle[block] = None
        else:
            self._release(block)

    def forget(self, block: int) -> None:
        """Free a block if it is idle: its contents are of no use any more."""
        if block in self._idle:
            del self._idle[block]
            self._release(block)

    def _release(self, block: int) -> None:
        self._is_free[block] = 1
        self._count += 1
        heapq.heappush(self._free, block)
        self.freed.append(block)
