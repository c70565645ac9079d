"""Copies between host and GPU that nobody waits for until their contents are needed."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_ROUND = 8  # copies to the device that may be under way before one has to be waited for

#: Waits for a CUDA event.
Wait = Callable[[Any], None]


def synchronize(event: Any) -> None:
    """Wait for an event of this process's own work."""
    event.synchronize()


def fill(numbers: Sequence[Any], buffer: Tensor) -> None:
    """Write numbers to the first places of a tensor on the host."""
    buffer.numpy()[: len(numbers)] = numbers


class PinnedUpload:
    """Page-locked buffers used in turn: each is rewritten only once the copy out of it is complete."""

    def __init__(self, wait: Wait, *shape: int) -> None:
        self._wait = wait
        self._turns = [
            (torch.zeros(shape, dtype=torch.int32, pin_memory=True), torch.cuda.Event())  # type: ignore[no-untyped-call,unused-ignore]
            for _ in range(_ROUND)
        ]
        self._turn = 0

    def send(self, target: Tensor, fill: Callable[[Tensor], None]) -> None:
        """Have `fill` write the next buffer from its start, and copy as much as the target holds."""
        self._turn = (self._turn + 1) % _ROUND
        buffer, copied = self._turns[self._turn]
        self._wait(copied)
        fill(buffer)
        target.copy_(buffer[: target.shape[0]], non_blocking=True)
        copied.record()


class SideUpload:
    """Copies to the device beside what is enqueued there, which later work waits for."""

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call,unused-ignore]

    def send(self, source: Tensor, device: torch.device) -> Tensor:
        """Copy a page-locked tensor."""
        current = torch.cuda.current_stream()
        with torch.cuda.stream(self._stream):
            copied = source.to(device, non_blocking=True)
        current.wait_stream(self._stream)
        copied.record_stream(current)
        return copied


class PendingTokens:
    """Tokens being copied to the host, into a buffer from `spare` that is returned there when they are read."""

    def __init__(self, source: Tensor, spare: list[Tensor], rows: int, wait: Wait) -> None:
        self._wait = wait
        self._host = spare.pop() if spare else torch.empty(rows, dtype=source.dtype, pin_memory=True)
        self._spare, self._count = spare, source.shape[0]
        self._values: list[int] | None = None
        self._host[: self._count].copy_(source, non_blocking=True)
        self._event = torch.cuda.Event()  # type: ignore[no-untyped-call,unused-ignore]
        self._event.record()

    def tokens(self) -> list[int]:
        """One token per row; waits for the copy, but for nothing enqueued after it."""
        if self._values is None:
            self._wait(self._event)
            self._values = self._host[: self._count].tolist()
            self._spare.append(self._host)
        return self._values
