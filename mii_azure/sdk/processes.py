"""Processes that other calls started, identified by more than a pid: a pid is reused once its process is gone."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HIGHEST_PID = 1 << 22  # Linux' own limit; others stay below it
KILL_TIMEOUT_S = 10.0  # to wait after SIGKILL; a process that waits for a device may never end
_PROC = Path("/proc")
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_ENDED = ("Z", "X")  # states of processes that have ended and were not reaped
_LOOK_S = 0.05
_PS_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Known:
    """Identity of a process: its pid, its start time as the system gives it, and its command line."""

    pid: int
    started: str
    command: str


def look(pid: int) -> Known | None:
    """Find the process of that pid, if it is this user's and has not ended; 0, 1 and negative pids never match."""
    if not 1 < pid <= HIGHEST_PID:
        return None
    return _from_proc(pid) if (_PROC / "self" / "stat").exists() else from_ps(pid)


def running(known: Known) -> bool:
    """True if that very process still runs."""
    return look(known.pid) == known


def _there(known: Known) -> bool:
    """The same, also of one that is ending: its command line goes first."""
    found = look(known.pid)
    return found is not None and found.started == known.started


def end(known: Known, patience_s: float, kill_s: float = KILL_TIMEOUT_S) -> bool:
    """Send SIGTERM and, after `patience_s`, SIGKILL; False if it still exists `kill_s` after that.

    Another process that has its pid by now is left alone.
    """
    for number, wait_s in ((signal.SIGTERM, patience_s), (signal.SIGKILL, kill_s)):
        _signal(known, number)
        deadline = time.monotonic() + wait_s
        while _there(known):
            if time.monotonic() > deadline:
                break
            time.sleep(_LOOK_S)
        else:
            return True
    return False


def _signal(known: Known, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError), _descriptor(known.pid) as descriptor:
        if not running(known):
            return
        if descriptor is None:
            os.kill(known.pid, number)
        else:
            signal.pidfd_send_signal(descriptor, number)


@contextlib.contextmanager
def _descriptor(pid: int) -> Iterator[int | None]:
    """Open a pidfd of the process that has the pid now, and of no later one; None if the system lacks them."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        raise
    except (AttributeError, OSError):
        yield None
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _from_proc(pid: int) -> Known | None:
    folder = _PROC / str(pid)
    try:
        owner = folder.stat().st_uid
        # After the name, which may contain anything: state is field 3, threads 20, the start in ticks since boot 22.
        fields = (folder / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        words = (folder / "cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
        boot = _BOOT.read_text(encoding="utf-8").strip() if _BOOT.exists() else ""
    except OSError:
        return None
    ended = fields[0] in _ENDED and int(fields[17]) <= 1  # otherwise its other threads are still ending
    if owner != os.geteuid() or ended:
        return None
    return Known(pid, f"{boot} {fields[19]}", " ".join(words))


def from_ps(pid: int) -> Known | None:
    """Find a process by `ps`, where there is no /proc, as on macOS."""
    command = ["ps", "-o", "uid=,stat=,lstart=,command=", "-ww", "-p", str(pid)]
    try:
        told = subprocess.run(
            command, capture_output=True, text=True, timeout=_PS_TIMEOUT_S, env={**os.environ, "LC_ALL": "C"}
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    fields = told.split(None, 7)  # a start time is five words: Mon Jan 2 15:04:05 2026
    if len(fields) < 8 or int(fields[0]) != os.geteuid() or fields[1][0] in _ENDED:
        return None
    return Known(pid, " ".join(fields[2:7]), fields[7].rstrip("\n"))
