"""Cache of converted models: `MII_AZURE_MODEL_CACHE`, or `~/.cache/mii_azure/models`, outside the source tree."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp

from mii_azure.errors import PackagedModelError
from mii_azure.platform.paths import expanded


def cache_folder() -> Path:
    """Folder in which the models are kept."""
    override = os.environ.get("MII_AZURE_MODEL_CACHE")
    return expanded(override) if override else Path.home() / ".cache" / "mii_azure" / "models"


def made_once(name: str, key: str, fill: Callable[[Path], None]) -> Path:
    """Folder `name` of the cache, made at the first call; read it, never write into it.

    `fill` is given an empty draft folder, and leaves the result in its model/. Drafts of the same `key` wait for each
    other. Safe when several processes ask at once; nothing half-written is left behind. Raises PackagedModelError for
    a cache that cannot be written, and what `fill` raises.
    """
    from filelock import FileLock

    final = cache_folder() / name
    if final.is_dir():
        return final
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(final.parent / f".{key}.lock"):
            if final.is_dir():  # another process made it meanwhile
                return final
            for left in final.parent.glob(f".{key}-draft-*"):  # of a process that was killed
                shutil.rmtree(left, ignore_errors=True)
            draft = Path(mkdtemp(prefix=f".{key}-draft-", dir=final.parent))
            try:
                fill(draft)
                (draft / "model").rename(final)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:
        raise PackagedModelError(
            f"The model cache {final.parent} cannot be written ({error.strerror or error}).",
            "Set MII_AZURE_MODEL_CACHE to a folder with some room.",
        ) from error
    return final
