"""Memory that the container leaves beside what the process holds already."""

import os
from pathlib import Path

from scoring.limits.control_groups import memory_limit
from scoring.passes.base import PassRefused


def refuse_without_room(needed: int) -> None:
    """Raise PassRefused if the control groups leave less than `needed` bytes beside what this process holds."""
    limit = memory_limit()
    if limit is not None and (left := limit - _resident()) < needed:
        room = f"{max(0, left) / 1e9:.2f} of {limit / 1e9:.2f} GB"
        raise PassRefused(f"it may take {needed / 1e9:.2f} GB, and the container leaves {room}")


def _resident() -> int:
    """Bytes that this process holds; 0 if the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
