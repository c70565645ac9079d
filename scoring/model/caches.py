"""Private cache folders for code that is compiled and run here; no other user can write to them."""

import logging
import os
import stat
import tempfile
from pathlib import Path

logger = logging.getLogger("mii_azure.caches")

#: torch's own default is a predictable name in the shared temporary folder.
_VARIABLES = {
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
    "MII_AZURE_NATIVE_CACHE": "native",
}
_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def use_private() -> None:
    """Point Inductor and Triton at private folders, unless the operator has named some."""
    unset = [name for name in _VARIABLES if not os.environ.get(name)]
    if not unset:
        return
    root = private_folder()
    for name in unset:
        folder = root / _VARIABLES[name]
        folder.mkdir(mode=0o700, exist_ok=True)
        os.environ[name] = str(folder)


def private_folder() -> Path:
    """`mii_azure/compiled` in the user's cache folder (XDG_CACHE_HOME, ~/.cache), made 0700.

    A folder that belongs to somebody else, is a link, lets others write, or cannot be made is not used: a new folder
    with an unpredictable name takes its place.
    """
    try:
        # No home at all raises RuntimeError.
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mii_azure"
        for folder in (base, base / "compiled"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if why := _unsafe(folder):
                raise OSError(f"{folder} {why}")
        return base / "compiled"
    except (OSError, RuntimeError) as error:
        fresh = Path(tempfile.mkdtemp(prefix="mii-azure-compiled-"))
        logger.warning("%s: code that is compiled here is kept in %s, for this start only", error, fresh)
        return fresh


def _unsafe(folder: Path) -> str:
    """Reason why compiled code must not be kept in a folder; empty if it may be."""
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        return "is no folder"
    if found.st_uid != os.geteuid():
        return "belongs to another user"
    if found.st_mode & _OTHERS:
        return "lets others write"
    return "" if os.access(folder, os.W_OK) else "is read-only"
