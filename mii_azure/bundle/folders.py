"""Folders that may be written, replaced or removed: absent or empty ones, and our own bundles."""

import contextlib
import shutil
from pathlib import Path

from local_runner.bundle.manifest import MANIFEST, open_file
from mii_azure.bundle.bundle_view import SCORE, SETTINGS
from mii_azure.bundle.manifest import load_manifest
from mii_azure.errors import BundleExists, NotABundle, NotWritten
from mii_azure.platform.paths import exists

_OWN = "Choose a folder of its own with --output, such as ./NAME."


def is_ours(folder: Path) -> bool:
    """True if `folder` is a bundle that the generator wrote: our manifest, scoring script and settings."""
    try:
        listed = load_manifest(folder)["files"]
        for path in (SCORE, SETTINGS):
            open_file(folder, path).close()
    except (NotABundle, OSError):
        return False
    return SETTINGS in listed and not folder.is_symlink()


def refuse_existing(target: Path, force: bool) -> None:
    """Raise BundleExists unless `target` may be written: absent, empty, or with `force` a bundle of ours."""
    if not exists(target):
        return
    if not target.is_dir():
        raise BundleExists(f"{target} is a file.", "Choose another --output.")
    if not any(target.iterdir()):
        return
    if not force:
        raise BundleExists(f"{target} exists.", "Choose another --output, or pass --force to replace it.")
    if not is_ours(target):
        what = f"has a {MANIFEST} that is not a bundle's" if (target / MANIFEST).exists() else "is not a bundle"
        raise BundleExists(
            f"{target} {what}, and --force only replaces bundles.",
            "Remove it yourself, or choose another --output.",
        )


def refuse_place(target: Path) -> None:
    """Raise NotWritten for a folder that must not become a bundle: one that somebody works or lives in."""
    for what, where in (("the current folder", Path.cwd), ("your home folder", Path.home)):
        try:
            folder = where().resolve()
        except (OSError, RuntimeError):  # the working directory was removed, or the user has no home
            continue
        if folder.is_relative_to(target):
            holds = "is" if folder == target else "holds"
            raise NotWritten(f"{target} {holds} {what}, and a bundle replaces a whole folder.", _OWN)
    if target.parent == target:
        raise NotWritten(f"{target} is the root of a file system.", _OWN)


def refuse_overlap(target: Path, model: Path) -> None:
    """Raise NotWritten if writing `target` would change or replace the model's folder.

    The model/ of a bundle is allowed: it is copied before the bundle is regenerated from it.
    """
    source = model.resolve()
    if target.is_relative_to(source):
        raise NotWritten(f"{target} is inside the model's folder {source}.", _OWN)
    if source.is_relative_to(target) and not (source == target / "model" and is_ours(target)):
        raise NotWritten(f"{target} holds the model's folder {source}, which would be replaced.", _OWN)


def remove(folder: Path) -> None:
    """Remove a bundle of ours; anything else stays."""
    if is_ours(folder):
        shutil.rmtree(folder, ignore_errors=True)


def remove_empty(folder: Path) -> None:
    """Remove a folder if it is empty."""
    with contextlib.suppress(OSError):
        folder.rmdir()
