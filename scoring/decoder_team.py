"""The ranks that hold one decoder's slices: sums over them, one choice of tokens, and waiting that a lost rank ends."""

import logging
import os
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

logger = logging.getLogger("mii_azure.team")

#: Bytes up to which a GPU reads every other's part itself. One kernel does that in a few microseconds, of which NCCL
#: takes two to three times as many; of larger tensors each GPU would read more than the ring of NCCL sends.
SMALL = 256 << 10
_ADDED = (torch.float32, torch.bfloat16)  # that torch's own kernel adds
_NAP_S = 5e-5


class Team:
    """This rank among those of the process group. `check` raises when another is gone, `patience_s` bounds waiting."""

    def __init__(
        self, rank: int, degree: int, device: torch.device, patience_s: float, check: Callable[[], None] = lambda: None
    ) -> None:
        self.rank = rank
        self.degree = degree
        self._patience_s = patience_s
        self._check = check
        self._staging = _staging(device) if degree > 1 else None

    @property
    def first(self) -> bool:
        """Whether this is the rank that adds what there must be only once."""
        return self.rank == 0

    @property
    def direct(self) -> bool:
        """Whether small sums read the other GPUs' memory themselves."""
        return self._staging is not None

    def sum(self, x: Tensor) -> None:
        """Replace x, of one shape on all ranks and contiguous, by its sum over them; enqueued on a GPU."""
        if self._staging is not None and x.nbytes <= SMALL and x.dtype in _ADDED:
            part = self._staging.view(x.dtype)[: x.numel()].view_as(x)
            # x to `part`, which all GPUs can read; a barrier; the sum of all parts to x; a barrier.
            torch.ops.symm_mem.one_shot_all_reduce_copy_out(part, x, "sum", _everyone().group_name, x)
        else:
            dist.all_reduce(x)

    def agree(self, tokens: Tensor) -> None:
        """Take over rank 0's tokens: a last bit that differs between two GPUs must not make two sequences of one."""
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


def _staging(device: torch.device) -> Tensor | None:
    """Memory [SMALL bytes] that all GPUs of the group can read; None on a CPU, or where they reach no other's memory.

    All ranks must call it, and come to the same.
    """
    if device.type != "cuda" or not _linked(torch.cuda.device_count()):
        return None
    os.environ["TORCH_SYMM_MEM_DISABLE_MULTICAST"] = "1"  # NVLink's, which is not used, and fails on some hosts
    staging = None
    try:
        import torch.distributed._symmetric_memory as symmetric

        staging = symmetric.empty(SMALL // 4, dtype=torch.float32, device=device)
        symmetric.rendezvous(staging, _everyone())
    except (ImportError, RuntimeError) as error:
        staging = None
        logger.warning("sums go over NCCL: %s", (str(error).strip().splitlines() or [type(error).__name__])[0])
    able = torch.tensor([int(staging is not None)], device=device)
    dist.all_reduce(able, dist.ReduceOp.MIN)
    return staging if able.item() else None


def _everyone() -> Any:
    return dist.group.WORLD


def _linked(gpus: int) -> bool:
    return all(torch.cuda.can_device_access_peer(a, b) for a in range(gpus) for b in range(gpus) if a != b)
