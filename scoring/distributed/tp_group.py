"""The ranks that hold a decoder's slices: all-reduce, rank 0's tokens on all, and waits that a lost rank ends."""

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from scoring.distributed.all_reduce import AllReduce, connect

_NAP_S = 5e-5


class TensorParallelGroup:
    """Process group as seen from this rank. `check` raises if another rank is gone; `patience_s` bounds waits."""

    def __init__(
        self, rank: int, degree: int, device: torch.device, patience_s: float, check: Callable[[], None] = lambda: None
    ) -> None:
        self.rank = rank
        self.degree = degree
        self._device = device
        self._patience_s = patience_s
        self._check = check
        self._exchange = connect(rank, degree, device) if degree > 1 else None

    @property
    def first(self) -> bool:
        """Return True for rank 0, which alone adds terms that must be added once."""
        return self.rank == 0

    def quick(self, x: Tensor) -> AllReduce | None:
        """The one-kernel all-reduce, without NCCL's barriers, if it takes a tensor of this size; None if NCCL must."""
        return self._exchange if self._exchange is not None and self._exchange.takes(x) else None

    def sum(self, x: Tensor) -> None:
        """All-reduce x in place, by NCCL or gloo; x is contiguous and of one shape on all ranks."""
        dist.all_reduce(x)

    def agree(self, tokens: Tensor) -> None:
        """Broadcast rank 0's tokens, whatever the last bits of this rank's logits are."""
        dist.broadcast(tokens, 0)

    def least(self, number: int) -> int:
        """Return the smallest of the ranks' numbers."""
        told = torch.tensor([number], device=self._device)
        dist.all_reduce(told, dist.ReduceOp.MIN)
        return int(told)

    def wait(self, event: Any, within_s: float = 0.0) -> None:
        """Poll for a CUDA event and check the ranks meanwhile: a kernel that waits for a lost rank never ends.

        Raises TimeoutError after `within_s` seconds (0: `patience_s`), and whatever `check` raises.
        """
        end = time.monotonic() + (within_s or self._patience_s)
        while not event.query():
            self._check()
            if time.monotonic() > end:
                raise TimeoutError(f"a step did not end within {within_s or self._patience_s:g} s")
            time.sleep(_NAP_S)  # the GPU does not idle meanwhile: the next step is already enqueued
