"""Compiles the CPU's decode step for this machine, with the machine's C compiler, and loads it.

A library is kept, by source and instruction sets, in the folder that MII_AZURE_NATIVE_CACHE names, if nobody else can
write there. It is checked in a process of its own before it is loaded, a kept one too: a machine that lies about its
instruction sets, or a damaged file, ends that one.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

logger = logging.getLogger("mii_azure.native_step")

SOURCE = Path(__file__).resolve().parent.parent / "kernels" / "decode_step.c"
FOLDER = "MII_AZURE_NATIVE_CACHE"
#: Linked without -ffast-math, which would have the whole process flush small numbers to zero.
_COMPILE = ("-std=gnu11", "-O3", "-ffast-math", "-march=native", "-fPIC", "-pthread", "-c")
_LINK = ("-shared", "-pthread")
_SECONDS = 120  # for all that a start compiles and checks
_OTHERS = stat.S_IWGRP | stat.S_IWOTH
_CHECK = "import ctypes, sys; sys.exit(ctypes.CDLL(sys.argv[1]).decode_check())"


class NoNativeStep(Exception):
    """Reason why the step cannot be compiled here."""


@cache
def library() -> ctypes.CDLL:
    """The compiled step; raises NoNativeStep without a C compiler, or where what it makes does not run."""
    if sys.platform != "linux":
        raise NoNativeStep(f"it is compiled on Linux only, and this is {platform.system()}")
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise NoNativeStep("its step is compiled where it runs, and there is no C compiler (apt-get install gcc)")
    kept = _kept()
    try:
        with tempfile.TemporaryDirectory(prefix="mii-azure-native-", dir=kept) as fresh:
            return _load(compiler, kept, Path(fresh))
    except (OSError, subprocess.SubprocessError) as error:
        raise NoNativeStep(f"its step does not compile here: {_brief(error)}") from error


def _kept() -> Path | None:
    """The configured folder, if it can be made and nobody else can write there."""
    named = os.environ.get(FOLDER)
    if not named:
        return None
    folder = Path(named)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _own(folder, stat.S_ISDIR) or not os.access(folder, os.W_OK):
            raise OSError(f"{folder} is no folder that this user alone may write")
    except OSError as error:
        logger.warning("%s: a CPU's decode step is compiled anew at every start", error)
        return None
    return folder


def _own(path: Path, kind: Callable[[int], bool]) -> bool:
    """True if a path is of a kind, not a link, and only this user may write it."""
    try:
        found = path.lstat()
    except OSError:
        return False
    return kind(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & _OTHERS


def _load(compiler: str, kept: Path | None, fresh: Path) -> ctypes.CDLL:
    deadline = time.monotonic() + _SECONDS
    path = kept / f"decode_step-{_key(compiler)}.so" if kept else fresh / "decode_step.so"
    if not _own(path, stat.S_ISREG) or _check(path, deadline):
        built = fresh / "built.so"
        for arguments in (
            (*_COMPILE, str(SOURCE), "-o", str(fresh / "decode_step.o")),
            (*_LINK, str(fresh / "decode_step.o"), "-o", str(built), "-lm"),
        ):
            code, said = _run((compiler, *arguments), deadline)
            if code:
                raise subprocess.CalledProcessError(code, compiler, stderr=said)
        built.chmod(0o700)
        if code := _check(built, deadline):
            raise NoNativeStep(f"its step, compiled for this machine, fails on it ({code})")
        built.replace(path)
    return ctypes.CDLL(str(path))


def _check(path: Path, deadline: float) -> int:
    """Exit code of the check of a library, in a process of its own; 0 if it is right."""
    return _run((sys.executable, "-I", "-S", "-c", _CHECK, str(path)), deadline)[0]


def _run(command: Sequence[str], deadline: float) -> tuple[int, bytes]:
    """Exit code and errors of a command; raises TimeoutExpired at the deadline, when its children end with it."""
    started = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, start_new_session=True
    )
    try:
        said = started.communicate(timeout=max(0.0, deadline - time.monotonic()))[1]
    except BaseException:
        with suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
        started.communicate()
        raise
    return started.returncode, said


def _key(compiler: str) -> str:
    """Hash of all that a library depends on."""
    try:
        cpu = "".join(sorted({line for line in Path("/proc/cpuinfo").read_text().splitlines() if _tells_sets(line)}))
    except OSError:
        cpu = platform.processor()
    told = "\0".join((SOURCE.read_text(encoding="utf-8"), compiler, *_COMPILE, *_LINK, platform.machine(), cpu))
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _tells_sets(line: str) -> bool:
    return line.startswith(("model name", "flags", "Features", "CPU part"))


def _brief(error: Exception) -> str:
    said = getattr(error, "stderr", None)
    lines = said.decode(errors="replace").strip().splitlines() if said else [str(error)]
    return (lines or [""])[0][:200]
