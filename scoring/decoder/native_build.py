"""Compiles the CPU's decode step for this machine, with the machine's C compiler, and loads it.

A library is kept, by source and instruction sets, in the folder that MII_AZURE_NATIVE_CACHE names. It is checked in a
process of its own before it is loaded: a machine that lies about its instruction sets ends that one.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).resolve().parent.parent / "kernels" / "decode_step.c"
FOLDER = "MII_AZURE_NATIVE_CACHE"
#: Linked without -ffast-math, which would have the whole process flush small numbers to zero.
_COMPILE = ("-std=gnu11", "-O3", "-ffast-math", "-march=native", "-fPIC", "-pthread", "-c")
_LINK = ("-shared", "-pthread")
_SECONDS = 120
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
    named = os.environ.get(FOLDER)
    try:
        if named:
            Path(named).mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="mii-azure-native-", dir=named) as fresh:
            return _load(compiler, Path(named) if named else None, Path(fresh))
    except (OSError, subprocess.SubprocessError) as error:
        raise NoNativeStep(f"its step does not compile here: {_brief(error)}") from error


def _load(compiler: str, kept: Path | None, fresh: Path) -> ctypes.CDLL:
    path = kept / f"decode_step-{_key(compiler)}.so" if kept else fresh / "decode_step.so"
    if not path.is_file():
        built = fresh / "decode_step.so"
        for arguments in (
            (*_COMPILE, str(SOURCE), "-o", str(fresh / "decode_step.o")),
            (*_LINK, str(fresh / "decode_step.o"), "-o", str(built), "-lm"),
        ):
            subprocess.run((compiler, *arguments), check=True, capture_output=True, timeout=_SECONDS)
        checked = subprocess.run((sys.executable, "-I", "-S", "-c", _CHECK, str(built)), timeout=_SECONDS)
        if checked.returncode:
            raise NoNativeStep(f"its step, compiled for this machine, fails on it ({checked.returncode})")
        built.replace(path)
    return ctypes.CDLL(str(path))


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
