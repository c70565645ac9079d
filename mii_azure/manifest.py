"""The manifest: the SHA-256 of every file of a bundle, and what differs from it.

How files are hashed is the local runner's (`local_runner.manifest`), which needs nothing but the standard library.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from local_runner.manifest import MANIFEST, bundle_digest, hash_files, read_manifest
from mii_azure.errors import NotABundle

SCHEMA = 1
# What running a bundle leaves behind; part of no manifest and no difference.
_IGNORED = "__pycache__"


@dataclass(frozen=True)
class Mismatch:
    """One file that is not as generated."""

    path: str
    kind: Literal["edited", "missing", "extra"]


def make_manifest(files: Mapping[str, str]) -> dict[str, Any]:
    """The content of manifest.json for {relative path: SHA-256 in hex}."""
    return {"schema": SCHEMA, "files": dict(sorted(files.items())), "bundle": bundle_digest(dict(files))}


def load_manifest(bundle: Path) -> dict[str, Any]:
    """Read the bundle's manifest; raise NotABundle where there is none, or it was edited itself."""
    if not bundle.is_dir():
        raise NotABundle(f"There is no folder {bundle}.", "Name a folder that `mii-azure generate` wrote.")
    manifest = read_manifest(bundle)
    if manifest.get("schema") != SCHEMA:
        raise NotABundle(
            f"{bundle / MANIFEST} has schema {manifest.get('schema')!r}; this version reads {SCHEMA}.",
            "Generate the bundle again.",
        )
    return manifest


def verify(bundle: Path) -> list[Mismatch]:
    """Hash every file and return what was edited, is missing or was added, by path; raises NotABundle."""
    manifest = load_manifest(bundle)
    listed: dict[str, str] = manifest["files"]
    present = {path for path in walk(bundle) if path != MANIFEST}
    found = [Mismatch(path, "missing") for path in listed.keys() - present]
    found += [Mismatch(path, "extra") for path in present - listed.keys()]
    hashes = hash_files(bundle, listed.keys() & present)
    found += [Mismatch(path, "edited") for path, digest in hashes.items() if digest != listed[path]]
    if bundle_digest(listed) != manifest.get("bundle"):
        found.append(Mismatch(MANIFEST, "edited"))
    return sorted(found, key=lambda mismatch: mismatch.path)


def walk(bundle: Path) -> Iterator[str]:
    """Every file below `bundle`, as a relative path with slashes, sorted; leaves out what running it creates."""
    for path in sorted(bundle.rglob("*")):
        relative = path.relative_to(bundle)
        if _IGNORED not in relative.parts and (path.is_file() or path.is_symlink()):
            yield relative.as_posix()
