"""Counts that the processes of one server share: each writes its own, and all read all.

Messages would tell a process too late how many requests the others hold.
"""

import mmap
import os

_COUNTS, _WORD = 2, 8  # of a front end: requests that wait for the model, and those that have not ended


class Board:
    """Memory shared by descriptor; `index` is that of the process that writes, -1 in one that only reads."""

    def __init__(self, descriptor: int, count: int, index: int = -1) -> None:
        self.descriptor = descriptor
        self._at = _COUNTS * index
        self._memory = memoryview(mmap.mmap(descriptor, _COUNTS * _WORD * count)).cast("q")

    @classmethod
    def create(cls, count: int) -> "Board":
        """Make one for `count` front ends; the descriptor may be inherited."""
        descriptor = os.memfd_create("front-ends")
        os.ftruncate(descriptor, _COUNTS * _WORD * count)
        return cls(descriptor, count)

    def write(self, busy: int, in_flight: int) -> None:
        """Replace this process's counts."""
        self._memory[self._at] = busy
        self._memory[self._at + 1] = in_flight

    def clear(self, index: int) -> None:
        """Forget the counts of a process that has ended."""
        self._memory[_COUNTS * index] = self._memory[_COUNTS * index + 1] = 0

    def busy_elsewhere(self) -> int:
        """Requests of the other processes that wait for the model."""
        return sum(self._memory[::_COUNTS]) - self._memory[self._at]

    def in_flight(self) -> int:
        """Requests and streams of all processes that have not ended."""
        return sum(self._memory[1::_COUNTS])
