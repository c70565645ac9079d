"""Sums over the GPUs of one host by one kernel, which the next may overlap: see `scoring.kernels.all_reduce`."""

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

logger = logging.getLogger("mii_azure.all_reduce")

CAPACITY = 65536  # numbers of one sum; of more, NCCL's ring sends fewer bytes than words with their signs are
_BLOCK = 512
_TRIED = 4096  # numbers of the sum that tries it
_SPINS = 1 << 21  # that what is late in it is looked for: seconds


class AllReduce:
    """The inboxes of the ranks [2, ranks, CAPACITY] int64 by their addresses, this one's kept; all ranks make one."""

    def __init__(self, rank: int, addresses: Sequence[int], own: Tensor, handle: Any = None) -> None:
        self._rank, self._degree = rank, len(addresses)
        self._own, self._handle = own, handle  # which keeps the others' inboxes within reach
        self._addresses = torch.tensor(addresses, dtype=torch.int64, device=own.device)
        self._counts = torch.zeros(CAPACITY // _BLOCK, dtype=torch.int32, device=own.device)

    def takes(self, x: Tensor) -> bool:
        """Whether a sum of this size is one for it."""
        return x.numel() <= CAPACITY

    def sum(self, x: Tensor, pdl: bool = False, options: Mapping[str, Any] | None = None, **how: Any) -> None:
        """Enqueue the sum of x over all ranks, in place, in float32."""
        self.launch(x, pdl, options, **how)

    def agree(self, x: Tensor, pdl: bool = False, options: Mapping[str, Any] | None = None, **how: Any) -> None:
        """Enqueue taking over rank 0's x, of numbers that float32 holds: integers up to 2^24."""
        self.launch(x, pdl, options, first=True, **how)

    def launch(self, x: Tensor, pdl: bool, options: Mapping[str, Any] | None, first: bool = False, count: int = -1,
               spins: int = -1, send: bool = True, take: bool = True) -> None:  # fmt: skip
        """Over the first `count` numbers of x, all where negative; sending and taking can be had apart."""
        from scoring.kernels.all_reduce import add_ranks

        count = x.numel() if count < 0 else count
        add_ranks[(max(1, -(-count // _BLOCK)),)](
            x, self._addresses, self._counts, count, spins, CAPACITY=CAPACITY, BN=_BLOCK, RANK=self._rank,
            WORLD=self._degree, FIRST=first, SEND=send, TAKE=take, PDL=pdl, num_warps=4, **(options or {}),
        )  # fmt: skip


def connect(rank: int, degree: int, device: torch.device) -> AllReduce | None:
    """The exchange over the GPUs of the process group; None where they reach no other's memory, or it adds up wrong.

    All ranks must call it, and come to the same. MII_AZURE_SUMS=nccl does without.
    """
    if device.type != "cuda" or os.environ.get("MII_AZURE_SUMS") == "nccl" or not _linked(torch.cuda.device_count()):
        return None
    os.environ["TORCH_SYMM_MEM_DISABLE_MULTICAST"] = "1"  # NVLink's, which is not used, and fails on some hosts
    exchange = None
    try:
        import torch.distributed._symmetric_memory as symmetric

        own = symmetric.empty(2, degree, CAPACITY, dtype=torch.int64, device=device).zero_()
        group: Any = dist.group.WORLD
        handle = symmetric.rendezvous(own, group)
        exchange = AllReduce(rank, _addresses(handle.buffer_ptrs, rank, own), own, handle)
    except (ImportError, RuntimeError) as error:
        logger.warning("no sums by own words: %s", (str(error).strip().splitlines() or [type(error).__name__])[0])
    if not _all(exchange is not None, device) or exchange is None:
        return None
    return exchange if _all(_adds_up(exchange, rank, degree, device), device) else None


def _addresses(blocks: Sequence[int], rank: int, own: Tensor) -> list[int]:
    """Where the ranks' inboxes are: each somewhere in the block of memory that the others see of it."""
    offset = torch.tensor([own.data_ptr() - blocks[rank]], device=own.device)
    offsets = [torch.empty_like(offset) for _ in blocks]
    dist.all_gather(offsets, offset)
    return [block + int(each) for block, each in zip(blocks, offsets, strict=True)]


def _adds_up(exchange: AllReduce, rank: int, degree: int, device: torch.device) -> bool:
    """Whether two sums are right, what is late being waited for so long and no longer."""
    exchange.sum(torch.zeros(_TRIED, device=device), count=0, spins=_SPINS)  # compiles it
    _all(True, device)  # before anybody waits for anybody
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
    """Whether it is true on all ranks."""
    word = torch.tensor([int(true)], device=device)
    dist.all_reduce(word, dist.ReduceOp.MIN)
    return bool(word.item())


def _linked(gpus: int) -> bool:
    return all(torch.cuda.can_device_access_peer(a, b) for a in range(gpus) for b in range(gpus) if a != b)
