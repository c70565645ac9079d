"""Private folders for sockets and logs; those of a process that was killed are removed by the next one."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import IO, Self

_PREFIX = "mii-azure-scratch-"
_OWNER = ".owner"  # locked while the process that created the folder lives, whatever its pid and wherever it runs


class Scratch:
    """Folder of this user alone (0700), in the folder for temporary files; a context manager."""

    def __init__(self, parent: Path | None = None) -> None:
        base = parent or Path(tempfile.gettempdir())
        sweep(base)
        self.path, self._owner = _make(base)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def remove(self) -> None:
        """Remove the folder and everything in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._owner.close()


def sweep(base: Path) -> None:
    """Remove this user's folders whose processes are gone."""
    for folder in base.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if folder.is_symlink() or folder.stat().st_uid != os.geteuid():
                continue
            with (folder / _OWNER).open("rb") as file:
                if _lock(file):
                    shutil.rmtree(folder, ignore_errors=True)


def _make(base: Path) -> tuple[Path, IO[bytes]]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
        file = (folder / _OWNER).open("xb")
        # Another process may have swept it before it was locked.
        if _lock(file) and (folder / _OWNER).exists():
            return folder, file
        file.close()


def _lock(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
