"""Manifest: the SHA-256 of every file of a bundle, and the differences from it.

Finding, hashing and comparing files is the local runner's part (`bundle.manifest`), which needs only the
standard library.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from local_runner.bundle.manifest import MANIFEST, bundle_digest, compare, entries, open_file, read_manifest
from local_runner.bundle.manifest import Mismatch as Mismatch
from local_runner.bundle.manifest import has_other_line_endings as has_other_line_endings
from local_runner.bundle.manifest import restoring as restoring
from mii_azure.errors import NotABundle

SCHEMA = 1


def make_manifest(files: Mapping[str, str]) -> dict[str, Any]:
    """Content of manifest.json for {relative path: SHA-256 in hex}."""
    return {"schema": SCHEMA, "files": dict(sorted(files.items())), "bundle": bundle_digest(dict(files))}


def load_manifest(bundle: Path) -> dict[str, Any]:
    """Read the bundle's manifest; raise NotABundle if there is none, or it was itself edited."""
    if not bundle.is_dir():
        raise NotABundle(f"There is no folder {bundle}.", "Name a folder that `mii-azure generate` wrote.")
    manifest = read_manifest(bundle)
    if manifest.get("schema") != SCHEMA:
        raise NotABundle(
            f"{bundle / MANIFEST} has schema {manifest.get('schema')!r}; this version reads {SCHEMA}.",
            "Generate the bundle again.",
        )
    return manifest


def find_mismatches(bundle: Path) -> list[Mismatch]:
    """Find files that were edited, are missing, were added or are no regular files, by path; raises NotABundle."""
    return compare(bundle, load_manifest(bundle))


def read_text(bundle: Path, path: str) -> str | None:
    """Text of a regular file of the bundle, reached through no link; None for anything else, or if not UTF-8."""
    try:
        with open_file(bundle, path) as file:
            return file.read().decode()
    except (OSError, ValueError):
        return None


def walk(bundle: Path) -> list[str]:
    """List every regular file below `bundle`, reached through no link, as a relative path with slashes, sorted."""
    return sorted(path for path, regular in entries(bundle) if regular)
