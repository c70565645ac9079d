"""What tests see of processes that are not their children, and how they are sure to end them."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

Seen = tuple[int, str]  # a pid, and when it started


def seen(pid: int) -> Seen | None:
    """A process that runs; None once it has ended, reaped or not."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else (pid, fields[19])


def alive(process: Seen) -> bool:
    """Whether that process runs, and not another with its pid."""
    return seen(process[0]) == process


def below(pid: int) -> list[Seen]:
    """All processes that a process has started, and those have, and so on."""
    with suppress(OSError):
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(word) for thread in threads for word in (thread / "children").read_text().split()]
        found = [each for each in map(seen, children) if each]
        return found + [further for child, _ in found for further in below(child)]
    return []


def command(pid: int) -> str:
    """The command line of a process; empty when it has gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def mentioning(text: str) -> list[Seen]:
    """All processes whose command line has a text."""
    pids = [int(each.name) for each in Path("/proc").iterdir() if each.name.isdigit()]
    return [found for pid in pids if text in command(pid) and (found := seen(pid))]


@contextmanager
def none_left() -> Iterator[list[Seen]]:
    """A list of processes that are killed when the block ends, as far as they live then."""
    noted: list[Seen] = []
    try:
        yield noted
    finally:
        for process in noted:
            if alive(process):
                os.kill(process[0], signal.SIGKILL)
