"""All-reduce over the GPUs of one host in one kernel, which the next may overlap: see `scoring.kernels.all_reduce`."""

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from scoring.distributed import peer_memory

logger = logging.getLogger("mii_azure.all_reduce")

CAPACITY = 65536  # numbers of one all-reduce; beyond it NCCL's ring sends fewer bytes than tagged words take
_BLOCK = 512
_TRIED = 4096  # numbers of the all-reduce that tests it
_SPINS = 1 << 21  # polls for a late word in that test: seconds


class AllReduce:
    """All-reduce through inboxes [2, ranks, CAPACITY] int64 at the given addresses; constructed on every rank."""

    def __init__(self, rank: int, addresses: Sequence[int], own: Tensor, mapped: Any = None) -> None:
        self._rank, self._degree = rank, len(addresses)
        self._own, self._mapped = own, mapped  # keeps the others' inboxes mapped
        self._addresses = torch.tensor(addresses, dtype=torch.int64, device=own.device)
        self._counts = torch.zeros(CAPACITY // _BLOCK, dtype=torch.int32, device=own.device)

    def takes(self, x: Tensor) -> bool:
        """Return True if x is small enough for this all-reduce."""
        return x.numel() <= CAPACITY

    def sum(self, x: Tensor, pdl: bool = False, options: Mapping[str, Any] | None = None, **how: Any) -> None:
        """Enqueue the sum of x over all ranks, in place, in float32."""
        self.launch(x, pdl, options, **how)

    def agree(self, x: Tensor, pdl: bool = False, options: Mapping[str, Any] | None = None, **how: Any) -> None:
        """Enqueue a broadcast of rank 0's x, whose numbers must fit float32: integers up to 2^24."""
        self.launch(x, pdl, options, first=True, **how)

    def launch(self, x: Tensor, pdl: bool, options: Mapping[str, Any] | None, first: bool = False, count: int = -1,
               spins: int = -1, send: bool = True, take: bool = True) -> None:  # fmt: skip
        """Launch the kernel over the first `count` numbers of x (negative: all), to send, to receive, or both."""
        from scoring.kernels.all_reduce import add_ranks

        count = x.numel() if count < 0 else count
        add_ranks[(max(1, -(-count // _BLOCK)),)](
            x, self._addresses, self._counts, count, spins, CAPACITY=CAPACITY, BN=_BLOCK, RANK=self._rank,
            WORLD=self._degree, FIRST=first, SEND=send, TAKE=take, PDL=pdl, num_warps=4, **(options or {}),
        )  # fmt: skip


def connect(rank: int, degree: int, device: torch.device) -> AllReduce | None:
    """Set up the all-reduce over the process group's GPUs; None without peer access, or if its sums are wrong.

    All ranks must call it, and get the same result. MII_AZURE_SUMS=nccl turns it off.
    """
    if device.type != "cuda" or os.environ.get("MII_AZURE_SUMS") == "nccl" or not _linked(torch.cuda.device_count()):
        return None
    exchange = None
    try:
        own = torch.zeros(2, degree, CAPACITY, dtype=torch.int64, device=device)
        torch.cuda.synchronize(device)  # cleared before another rank can write to it
        mapped = peer_memory.exchange(own, rank)
        exchange = AllReduce(rank, mapped.addresses, own, mapped)
    except OSError as error:
        logger.warning("no sums by own words: %s", error)
    if not _all(exchange is not None, device) or exchange is None:
        return None
    return exchange if _all(_adds_up(exchange, rank, degree, device), device) else None


def _adds_up(exchange: AllReduce, rank: int, degree: int, device: torch.device) -> bool:
    """Return True if two all-reduces give the right sums, with a bounded wait for late words."""
    exchange.sum(torch.zeros(_TRIED, device=device), count=0, spins=_SPINS)  # compiles it
    _all(True, device)  # before any rank waits for another
    numbers = torch.arange(_TRIED, device=device).float()
    wanted = numbers * (degree * (degree + 1) // 2)
    for _ in range(2):
        found = numbers * (rank + 1)
        exchange.sum(found, spins=_SPINS)
        if not torch.equal(found, wanted):
            logger.warning("sums by own words are wrong on this machine")
            return False
    return True


def _all(true: bool, device: torch.device) -> bool:
    """Return True if `true` holds on all ranks."""
    word = torch.tensor([int(true)], device=device)
    dist.all_reduce(word, dist.ReduceOp.MIN)
    return bool(word.item())


def _linked(gpus: int) -> bool:
    return all(torch.cuda.can_device_access_peer(a, b) for a in range(gpus) for b in range(gpus) if a != b)
