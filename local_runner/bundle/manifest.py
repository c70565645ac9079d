"""Checks a bundle against its manifest before a line of it runs.

Standard library only, on purpose: `local_runner.errors` imports `scoring.errors`, and in a server process that has to
be the bundle's copy, which may not be imported before it is checked. `enter` settles that order.
"""

import errno
import hashlib
import importlib
import io
import json
import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

MANIFEST = "manifest.json"
INTERFACE = 6  # the version of `scoring.host_api` that this package calls
# Folders where a file that the manifest does not list could change what runs.
_CLOSED = ("code/", "model/")
_LONGEST_NAME = 255  # bytes; NAME_MAX of every file system in use
_LARGEST_TEXT = 1 << 24  # bytes of a file whose line endings are looked at
_RESTORE = "Restore the files and remove what was added, caches and links too, or generate the bundle again."
_CHECK_OUT = "Line endings were converted (CRLF), as Git does on Windows: keep .gitattributes, and check it out again."


class Mismatch(NamedTuple):
    """A path that is not as generated; a link, a device, a pipe or an unreadable folder is no regular file."""

    path: str
    kind: Literal["edited", "missing", "extra", "no regular file"]


def is_plain(name: object) -> bool:
    """True if it names a file in one folder: no separator of any system, no `..`, no unprintable character."""
    if not isinstance(name, str) or name in ("", ".", "..") or not name.isprintable():
        return False
    return not {"/", "\\"} & set(name) and len(name.encode()) <= _LONGEST_NAME


def is_plain_path(path: object) -> bool:
    """True if the path is relative and every part between slashes is a plain name."""
    return isinstance(path, str) and all(map(is_plain, path.split("/")))


def open_file(root: Path, path: str) -> io.BufferedReader:
    """Open a regular file below `root`, reached through no link; raises OSError for anything else, and never blocks."""
    if not is_plain_path(path):
        raise OSError(errno.EINVAL, "is no relative path", path)
    *folders, name = path.split("/")
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for each in folders:
            inner = os.open(each, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
            os.close(folder)
            folder = inner
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    finally:
        os.close(folder)
    if stat.S_ISREG(os.fstat(file).st_mode):
        return os.fdopen(file, "rb")
    os.close(file)
    raise OSError(errno.EINVAL, "is not a regular file", path)


def hash_files(root: Path, paths: Iterable[str]) -> dict[str, str]:
    """SHA-256 of each path under `root`, in threads (hashlib releases the GIL); "" where `open_file` refuses."""

    def digest(path: str) -> str:
        try:
            with open_file(root, path) as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:
            return ""

    names = list(paths)
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        return dict(zip(names, pool.map(digest, names), strict=True))


def entries(root: Path) -> Iterator[tuple[str, bool]]:
    """Walk everything below `root` except folders: relative path, and True for a regular file. Follows no link."""
    folders = [""]
    while folders:
        folder = folders.pop()
        try:
            found = list(os.scandir(root / folder))
        except OSError:
            if folder:
                yield folder.removesuffix("/"), False
            continue
        for entry in found:
            if entry.is_dir(follow_symlinks=False):
                folders.append(f"{folder}{entry.name}/")
            else:
                yield f"{folder}{entry.name}", entry.is_file(follow_symlinks=False)


def bundle_digest(files: dict[str, str]) -> str:
    """Hash of the whole bundle: SHA-256 over its sorted `hash  path` lines."""
    lines = "".join(f"{line}\n" for line in sorted(f"{digest}  {path}" for path, digest in files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def read_manifest(bundle: Path) -> dict[str, Any]:
    """Read the manifest of the bundle at `bundle`; raises NotABundle."""
    try:
        with open_file(bundle, MANIFEST) as file:
            manifest: dict[str, Any] = json.load(file)
        files = manifest["files"]
        if not isinstance(files, dict) or "code/score.py" not in files:
            raise ValueError("it lists no code/score.py")
        if odd := [path for path, digest in files.items() if not is_plain_path(path) or not isinstance(digest, str)]:
            raise ValueError(f"it lists {odd[0][:80]!r}, which is no file of a bundle")
        return manifest
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        from local_runner.errors import NotABundle

        why = "it has no manifest.json" if isinstance(error, OSError) else f"its manifest cannot be read: {error}"
        raise NotABundle(f"{bundle} is not a bundle: {why}.", "Write one with `mii-azure generate`.") from error


def compare(
    bundle: Path, manifest: dict[str, Any], concerns: Callable[[str], bool] = lambda path: True
) -> list[Mismatch]:
    """Differences from the manifest among the paths that `concerns` selects, sorted. An unlisted file is extra."""
    listed = {path: digest for path, digest in manifest["files"].items() if concerns(path)}
    present = {path: regular for path, regular in entries(bundle) if concerns(path) and path != MANIFEST}
    found = [Mismatch(path, "missing") for path in listed.keys() - present.keys()]
    found += [Mismatch(_shown(path), "no regular file") for path, regular in present.items() if not regular]
    found += [Mismatch(_shown(path), "extra") for path in present.keys() - listed.keys() if present[path]]
    hashes = hash_files(bundle, [path for path in listed if present.get(path)])
    found += [Mismatch(path, "edited") for path, digest in hashes.items() if digest != listed[path]]
    if concerns(MANIFEST) and bundle_digest(manifest["files"]) != manifest.get("bundle"):
        found.append(Mismatch(MANIFEST, "edited"))
    return sorted(found)


def _shown(path: str) -> str:
    """A path made safe to print on a terminal: whoever adds a file chooses its name."""
    return path if path.isprintable() else ascii(path)[1:-1]


def has_other_line_endings(bundle: Path, path: str, digest: str) -> bool:
    """True if a file is the one of this hash but for carriage returns."""
    try:
        with open_file(bundle, path) as file:
            content = file.read(_LARGEST_TEXT)
    except OSError:
        return False
    return b"\r\n" in content and hashlib.sha256(content.replace(b"\r\n", b"\n")).hexdigest() == digest


def restoring(bundle: Path, manifest: dict[str, Any], changed: Iterable[Mismatch]) -> str:
    """Remedy for a bundle with these differences from its manifest."""
    listed = manifest["files"]
    converted = all(
        each.kind == "edited" and has_other_line_endings(bundle, each.path, listed.get(each.path, ""))
        for each in changed
    )
    return _CHECK_OUT if converted else _RESTORE


def edits(bundle: Path, manifest: dict[str, Any], weights: bool) -> list[Mismatch]:
    """Differences from the manifest; `weights` selects model/ or everything else.

    A file that was added outside code/ and model/ is ignored: it changes nothing that runs.
    """
    found = compare(bundle, manifest, lambda path: path.startswith("model/") == weights)
    return [each for each in found if each.kind != "extra" or each.path.startswith(_CLOSED)]


def verify_hashes(bundle: Path, weights: bool) -> None:
    """Raise BundleEdited, naming the files, if model/ (`weights`) or everything else differs from the manifest."""
    manifest = read_manifest(bundle)
    if edited := edits(bundle, manifest, weights):
        from local_runner.errors import BundleEdited

        named = ", ".join(f"{path} ({kind})" for path, kind in edited[:8])
        named += f" and {len(edited) - 8} more" if len(edited) > 8 else ""
        raise BundleEdited(f"{bundle} is not as it was generated: {named}.", restoring(bundle, manifest, edited))


def enter(bundle: Path) -> None:
    """Verify everything but the weights, then put the bundle's code/ first on the import path.

    The weights are hashed later (`ScoreScript.init`), when the ports already answer. Raises NotABundle, BundleEdited,
    and RunnerFailed if another `scoring` is already imported or the bundle's has another host interface version.
    """
    verify_hashes(bundle, weights=False)
    code = str(bundle / "code")
    loaded = sys.modules.get("scoring")
    if loaded is not None and not str(loaded.__file__).startswith(code + os.sep):
        from local_runner.errors import RunnerFailed

        raise RunnerFailed(
            f"Another `scoring` package is imported already: {loaded.__file__}.",
            "Run the bundle in a process of its own: `python -m local_runner BUNDLE`.",
        )
    sys.path.insert(0, code)
    # Importing must not write into the bundle: the manifest does not list caches, so the next start would refuse them.
    # The environment variable does the same for processes that this one starts.
    sys.dont_write_bytecode = True
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    _require_interface(bundle)


def _require_interface(bundle: Path) -> None:
    """Raise RunnerFailed if this runner does not support the host interface of the bundle's scoring package."""
    # Looked up as a file: an editable installation would supply modules that the package lacks.
    declared = (bundle / "code" / "scoring" / "host_api.py").is_file()
    found = importlib.import_module("scoring.host_api").VERSION if declared else 0
    if found != INTERFACE:
        from local_runner.errors import RunnerFailed

        raise RunnerFailed(
            f"{bundle} was written by another version of mii-azure: its scoring package has the host interface"
            f" {found or 'of old'}, and this runner speaks {INTERFACE}.",
            "Generate the bundle again, or serve it with the version that wrote it, which its sbom.json names.",
        )
