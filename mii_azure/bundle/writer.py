"""Writes a bundle: copies weights and scoring code, adds the rendered files and the manifest, all or nothing."""

import contextlib
import errno
import hashlib
import secrets
import shutil
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

from local_runner.bundle.manifest import MANIFEST, entries, is_plain_path
from mii_azure.bundle.carried import carried_code
from mii_azure.bundle.folders import refuse_existing, remove_empty
from mii_azure.bundle.manifest import make_manifest
from mii_azure.bundle.render import as_json
from mii_azure.bundle.stopping import unwinding
from mii_azure.errors import NotWritten
from mii_azure.platform.paths import expanded
from mii_azure.platform.servers import Server

Progress = Callable[[int, int], None]  # bytes done so far, bytes in all


class Making(Protocol):
    """Maker of files of a bundle's model/ that are not copied."""

    @property
    def bytes(self) -> int:
        """Bytes that they will take, as far as known."""

    def make(self, target: Path, progress: Progress) -> dict[str, str]:
        """Write them into `target` and return {name: SHA-256}."""


_CHUNK = 4 << 20
_EXECUTABLE = {"deploy.sh", "autoscale.sh"}
_NAMES = "Rename that file in the model's folder."
# Space for everything but the weights.
_OTHER_BYTES = 2 << 20


def write(
    target: Path,
    *,
    render_files: Callable[[Mapping[str, str]], Mapping[str, str]],
    weights: Mapping[str, Path],
    making: Making | None = None,
    server: Server = "azmlinfsrv",
    force: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write a bundle at `target` and return its absolute path.

    `weights` maps paths in the bundle to the files to copy there; `making` makes the other files of its model/. Their
    SHA-256s are passed to `render_files`, which returns the text of every other file except the Python carried
    for `server`. `target` appears only once complete. Raises BundleExists, NotWritten.
    """
    target = expanded(target).resolve()
    try:
        refuse_existing(target, force)
        with unwinding(), _staging(target) as folder:
            _check_space(folder, weights, making.bytes if making else 0)
            copied = _copy_weights(weights, folder, None if making else progress)
            if making:
                (folder / "model").mkdir(exist_ok=True)
                made = making.make(folder / "model", progress or (lambda done, total: None))
                copied |= {f"model/{name}": digest for name, digest in made.items()}
            hashes = copied | _copy_code(folder, server)
            for path, text in render_files(copied).items():
                hashes[path] = _write_text(_in_staging(folder, path), text)
            _write_text(_in_staging(folder, MANIFEST), as_json(make_manifest(hashes)))
            _refuse_strays(folder, hashes.keys() | {MANIFEST})
            refuse_existing(target, force)
            _put_in_place(folder, target)
    except OSError as error:
        reason = f"{target} could not be written: {error.strerror or error}."
        raise NotWritten(reason, _remedy(error), where=str(error.filename or "")) from error
    return target


@contextlib.contextmanager
def _staging(target: Path) -> Iterator[Path]:
    """Create a folder beside `target`, always removed afterwards; so are its new parents, if left empty."""
    missing = [parent for parent in target.parents if not parent.exists()]
    folder = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    try:
        folder.mkdir(parents=True)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if target.exists():
            shutil.rmtree(_replaced(folder), ignore_errors=True)
        for parent in missing:
            remove_empty(parent)


def _check_space(folder: Path, weights: Mapping[str, Path], made: int) -> None:
    needed = sum(path.stat().st_size for path in weights.values()) + made + _OTHER_BYTES
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"{needed / 2**30:.1f} GiB are needed and {free / 2**30:.1f} GiB are free")


def _copy_weights(weights: Mapping[str, Path], folder: Path, progress: Progress | None) -> dict[str, str]:
    total = sum(path.stat().st_size for path in weights.values())
    done = 0
    hashes: dict[str, str] = {}
    for relative, source in sorted(weights.items()):
        target = _in_staging(folder, relative)
        digest = hashlib.sha256()
        with source.open("rb") as reader, target.open("xb") as writer:
            while chunk := reader.read(_CHUNK):
                digest.update(chunk)
                writer.write(chunk)
                done += len(chunk)
                if progress:
                    progress(done, total)
        hashes[relative] = digest.hexdigest()
    return hashes


def _copy_code(folder: Path, server: Server) -> dict[str, str]:
    hashes = {}
    for relative, source in carried_code(server).items():
        content = source.read_bytes()
        _in_staging(folder, relative).write_bytes(content)
        hashes[relative] = hashlib.sha256(content).hexdigest()
    return hashes


def _write_text(path: Path, text: str) -> str:
    content = text.encode()
    path.write_bytes(content)
    if path.name in _EXECUTABLE:
        path.chmod(path.stat().st_mode | 0o111)
    return hashlib.sha256(content).hexdigest()


def _in_staging(folder: Path, path: str) -> Path:
    """Path of a new file of the bundle, with its folder made; raises NotWritten if it would lie elsewhere."""
    target = folder / path
    if not is_plain_path(path):
        raise NotWritten(f"{path!a} would be written outside the bundle.", _NAMES)
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.parent.resolve() != target.parent or target.exists() or target.is_symlink():
        raise NotWritten(f"{path} would be written twice, or through a link.", _NAMES)
    return target


def _refuse_strays(folder: Path, paths: Iterable[str]) -> None:
    """Raise NotWritten unless `folder` holds regular files at `paths`, distinct on every file system, and no others."""
    if dict(entries(folder)) != dict.fromkeys(paths, True):
        raise NotWritten("What was written is not what the manifest lists.", "Nothing was left behind; try again.")
    folded: dict[str, str] = {}
    for path in sorted(paths):
        twin = folded.setdefault(unicodedata.normalize("NFC", path).casefold(), path)
        if twin != path:
            raise NotWritten(f"{twin} and {path} are one file where capitals do not count.", _NAMES)


def _replaced(folder: Path) -> Path:
    return folder.with_suffix(".replaced")


def _put_in_place(folder: Path, target: Path) -> None:
    """Rename `folder` to `target`; a bundle that was there is restored if that fails."""
    if not target.exists() or not any(target.iterdir()):
        folder.rename(target)  # replaces an empty folder
        return
    old = _replaced(folder)
    target.rename(old)
    try:
        folder.rename(target)
    except BaseException:
        old.rename(target)
        raise


def _remedy(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "Free some space, or choose another --output."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "Choose an --output that you may write to."
    return "Nothing was left behind."
