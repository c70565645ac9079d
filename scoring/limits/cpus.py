"""Cores that this process may use, and OpenMP set up for them before torch is imported. Standard library only."""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from scoring.limits.control_groups import folders

#: Processes on this machine that share the cores, this one among them; set by who starts several.
SHARERS = "MII_AZURE_SHARERS"
_THREADS = "OMP_NUM_THREADS"
#: What an operator may have said of waiting; libgomp and Intel's OpenMP have a name each beside the standard's.
_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
_AT_FIRST = frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else frozenset()


def cores(root: Path = Path("/")) -> int:
    """Cores that this process may use: its affinity, cut by its control groups' quotas, and its share of both."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = min([allowed, *map(math.ceil, _quotas(root))])
    with suppress(KeyError, ValueError, ZeroDivisionError):
        share //= int(os.environ[SHARERS])
    return max(1, share)


def settle() -> None:
    """Have OpenMP wait without spinning, on no more threads than cores; what an operator has set stays.

    A spinning thread keeps its core from whoever has work: beside one busy process a region of two threads then takes
    ten times as long. OpenMP counts the machine's cores, and knows no quota.
    """
    if not any(name in os.environ for name in _WAITING):
        os.environ["OMP_WAIT_POLICY"] = "passive"
    if _THREADS not in os.environ and cores() < (os.cpu_count() or 1):
        os.environ[_THREADS] = str(cores())


@contextmanager
def unbound() -> Iterator[None]:
    """Have threads that start within run on all cores that this process began with.

    OpenMP binds a thread that computes to one core where an operator asks for it (OMP_PROC_BIND), and threads inherit
    that: those of another pool would share the core.
    """
    if not _AT_FIRST:
        yield
        return
    own = os.sched_getaffinity(0)
    with suppress(OSError):  # its cores have been taken from it since
        os.sched_setaffinity(0, _AT_FIRST)
    try:
        yield
    finally:
        os.sched_setaffinity(0, own)


def _quotas(root: Path) -> Iterator[float]:
    """Cores by the quota of each control group around this process."""
    for folder in folders("cpu", root):
        yield from _quota(folder)


def _quota(folder: Path) -> Iterator[float]:
    with suppress(OSError, ValueError, ZeroDivisionError):  # no such file, or "max"
        quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
        yield int(quota) / int(period)
    with suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = ((folder / f"cpu.cfs_{name}_us").read_text(encoding="ascii") for name in ("quota", "period"))
        if int(quota) > 0:  # -1: none
            yield int(quota) / int(period)
