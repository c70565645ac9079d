"""Paths as users give them, whatever they are: asked about without an error."""

import os
from pathlib import Path


def expanded(path: Path | str) -> Path:
    """Path with `~` and `~user` replaced by their folders, and as it is where there is no such user."""
    # Path.expanduser raises RuntimeError there.
    return Path(os.path.expanduser(path))  # noqa: PTH111


def is_folder(path: Path | str) -> bool:
    """True for a folder; False also for what can be no path, such as a name that is too long."""
    # Path.is_dir raises OSError for a name that is too long.
    return os.path.isdir(path)  # noqa: PTH112


def exists(path: Path | str) -> bool:
    """True for a path that is there; False also for what can be no path."""
    return os.path.exists(path)  # noqa: PTH110
