"""The ranks that hold one decoder's slices: sums over them, one choice of tokens, and waiting that a lost rank ends."""

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from scoring.distributed.all_reduce import AllReduce, connect

_NAP_S = 5e-5


class TensorParallelGroup:
    """This rank among those of the process group. `check` raises when another is gone, `patience_s` bounds waiting."""

    def __init__(
        self, rank: int, degree: int, device: torch.device, patience_s: float, check: Callable[[], None] = lambda: None
    ) -> None:
        self.rank = rank
        self.degree = degree
        self._patience_s = patience_s
        self._check = check
        self._exchange = connect(rank, degree, device) if degree > 1 else None

    @property
    def first(self) -> bool:
        """Whether this is the rank that adds what there must be only once."""
        return self.rank == 0

    def quick(self, x: Tensor) -> AllReduce | None:
        """What adds up a tensor of this size in one kernel, without the barriers of NCCL's; None where NCCL has to."""
        return self._exchange if self._exchange is not None and self._exchange.takes(x) else None

    def sum(self, x: Tensor) -> None:
        """Replace x, of one shape on all ranks and contiguous, by its sum over them: NCCL's or gloo's."""
        dist.all_reduce(x)

    def agree(self, tokens: Tensor) -> None:
        """Take over rank 0's tokens, whatever the last bits of this rank's logits are."""
        dist.broadcast(tokens, 0)

    def wait(self, event: Any, within_s: float = 0.0) -> None:
        """Wait for a CUDA event: a kernel that waits for a lost rank never ends, so the host looks after the ranks.

        Raises TimeoutError after `within_s` seconds (0: the patience), and what `check` does.
        """
        end = time.monotonic() + (within_s or self._patience_s)
        while not event.query():
            self._check()
            if time.monotonic() > end:
                raise TimeoutError(f"a step did not end within {within_s or self._patience_s:g} s")
            time.sleep(_NAP_S)  # a step is under way beside the one that is waited for: the GPU does not
