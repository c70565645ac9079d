"""Checks a bundle against its manifest before a line of it runs.

Standard library only, on purpose: `mii_azure.errors` imports `scoring.errors`, and in a server process that has to be
the bundle's copy, which may not be imported before it is checked. `enter` settles that order.
"""

import hashlib
import json
import os
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
# Where a file that the manifest does not list could change what runs.
_CLOSED = ("code", "model")
_IGNORED = "__pycache__"


def hash_files(root: Path, paths: Iterable[str]) -> dict[str, str]:
    """SHA-256 of each path under `root`, in threads (hashlib releases the GIL); a missing file hashes to ""."""

    def digest(path: str) -> str:
        try:
            with (root / path).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return ""

    names = list(paths)
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        return dict(zip(names, pool.map(digest, names), strict=True))


def bundle_digest(files: dict[str, str]) -> str:
    """The hash of the whole bundle: SHA-256 over its sorted `hash  path` lines."""
    lines = "".join(f"{line}\n" for line in sorted(f"{digest}  {path}" for path, digest in files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def read_manifest(bundle: Path) -> dict[str, Any]:
    """The manifest of the bundle at `bundle`; raises NotABundle."""
    try:
        manifest: dict[str, Any] = json.loads((bundle / MANIFEST).read_text(encoding="utf-8"))
        files = manifest["files"]
        if not isinstance(files, dict) or "code/score.py" not in files:
            raise ValueError("it lists no code/score.py")
        return manifest
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        from mii_azure.errors import NotABundle

        why = "it has no manifest.json" if isinstance(error, OSError) else f"its manifest cannot be read: {error}"
        raise NotABundle(f"{bundle} is not a bundle: {why}.", "Write one with `mii-azure generate`.") from error


def edits(bundle: Path, manifest: dict[str, Any], weights: bool) -> list[str]:
    """What differs from the manifest, as `path (edited|missing|extra)`; `weights` picks model/ or all the rest."""
    listed = {path: digest for path, digest in manifest["files"].items() if _is_weight(path) == weights}
    found = hash_files(bundle, listed)
    edited = {path: "edited" if found[path] else "missing" for path in listed if found[path] != listed[path]}
    for folder in _CLOSED:
        for path in _present(bundle, folder):
            if _is_weight(path) == weights and path not in listed:
                edited[path] = "extra"
    if not weights and bundle_digest(manifest["files"]) != manifest.get("bundle"):
        edited[MANIFEST] = "edited"
    return [f"{path} ({how})" for path, how in sorted(edited.items())]


def verify(bundle: Path, weights: bool) -> None:
    """Raise BundleEdited, naming the files, if model/ (`weights`) or everything else is not as generated."""
    edited = edits(bundle, read_manifest(bundle), weights)
    if edited:
        from mii_azure.errors import BundleEdited

        named = ", ".join(edited[:8]) + (f" and {len(edited) - 8} more" if len(edited) > 8 else "")
        raise BundleEdited(
            f"{bundle} is not as it was generated: {named}.",
            "Restore the files, or generate the bundle again.",
        )


def enter(bundle: Path) -> None:
    """Verify all but the weights, then make the bundle's code/ the first place that imports look at.

    The weights are hashed later (`ScoreScript.init`), while the ports already answer. Raises NotABundle, BundleEdited,
    RunnerFailed when another `scoring` is imported already.
    """
    verify(bundle, weights=False)
    code = str(bundle / "code")
    loaded = sys.modules.get("scoring")
    if loaded is not None and not str(loaded.__file__).startswith(code + os.sep):
        from local_runner.errors import RunnerFailed

        raise RunnerFailed(
            f"Another `scoring` package is imported already: {loaded.__file__}.",
            "Run the bundle in a process of its own: `python -m local_runner BUNDLE`.",
        )
    sys.path.insert(0, code)
    # Importing must not write into the bundle.
    sys.dont_write_bytecode = True


def _is_weight(path: str) -> bool:
    return path.startswith("model/")


def _present(bundle: Path, folder: str) -> Iterable[str]:
    for path in sorted((bundle / folder).rglob("*")):
        if path.is_file() and _IGNORED not in path.parts:
            yield path.relative_to(bundle).as_posix()
