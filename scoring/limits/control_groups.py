"""Folders of the control groups around this process, and what they leave it of memory. Standard library only."""

import mmap
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def folders(controller: str, root: Path = Path("/")) -> Iterator[Path]:
    """Folder of each control group around this process that a controller governs, of version 2 and of version 1."""
    with suppress(OSError, ValueError):  # no such file, or not in the form that Linux writes
        for line in (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and controller not in controllers.split(","):
                continue
            top = root / "sys/fs/cgroup" / controllers
            inner = top / path.lstrip("/")
            # In a container the path may be the host's, of which only the top is mounted.
            yield from (folder for folder in (inner, *inner.parents) if folder.is_relative_to(top))


def memory_limit(root: Path = Path("/")) -> int | None:
    """Bytes that the control groups leave to this process, beyond which the kernel ends it; None without a limit."""
    found = []
    for folder in folders("memory", root):
        for name in ("memory.max", "memory.limit_in_bytes"):
            with suppress(OSError, ValueError):  # no such file, or "max"
                found.append(int((folder / name).read_text(encoding="ascii")))
    return min(found, default=None)


def left(root: Path = Path("/")) -> int:
    """Bytes of the control groups' limit that this process does not hold yet; unbounded without a limit."""
    limit = memory_limit(root)
    if limit is None:
        return sys.maxsize
    with suppress(OSError, ValueError, IndexError):
        limit -= mmap.PAGESIZE * int((root / "proc/self/statm").read_text(encoding="ascii").split()[1])
    return max(0, limit)


def held(root: Path = Path("/")) -> int:
    """Bytes that this process holds and that no file backs, which the kernel cannot take back; 0 where none tells."""
    with suppress(OSError, ValueError, IndexError):
        for line in (root / "proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("RssAnon:"):
                return 1024 * int(line.split()[1])
    return 0
