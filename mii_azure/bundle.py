"""Writes a bundle: copies weights and scoring code, adds the rendered files and the manifest, all of it or nothing."""

import contextlib
import errno
import hashlib
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

from local_runner.manifest import MANIFEST
from mii_azure.errors import BundleExists, NotWritten
from mii_azure.manifest import make_manifest
from mii_azure.render import as_json
from mii_azure.servers import HOST, HOST_FILES, HOST_FOLDER, Server

Progress = Callable[[int, int], None]  # bytes done so far, bytes in all


class Making(Protocol):
    """Makes files of a bundle's model/ that are not copied."""

    @property
    def bytes(self) -> int:
        """What they will take, as far as it is known."""

    def make(self, target: Path, progress: Progress) -> dict[str, str]:
        """Write them into `target` and return {name: SHA-256}."""


SCORING = Path(__file__).resolve().parent.parent / "scoring"
_CHUNK = 4 << 20
_EXECUTABLE = {"deploy.sh", "autoscale.sh"}
# Room for everything but the weights.
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
    SHA-256s are what `render_files` gets, and it returns the text of every other file but the Python that is carried
    for `server`. Nothing is at `target` before all of it is. Raises BundleExists, NotWritten.
    """
    target = target.expanduser().resolve()
    try:
        refuse_existing(target, force)
        with _staging(target) as folder:
            _check_space(folder, weights, making.bytes if making else 0)
            copied = _copy_weights(weights, folder, None if making else progress)
            if making:
                (folder / "model").mkdir(exist_ok=True)
                made = making.make(folder / "model", progress or (lambda done, total: None))
                copied |= {f"model/{name}": digest for name, digest in made.items()}
            hashes = copied | _copy_code(folder, server)
            for path, text in render_files(copied).items():
                hashes[path] = _write_text(folder / path, text)
            _write_text(folder / MANIFEST, as_json(make_manifest(hashes)))
            _put_in_place(folder, target)
    except OSError as error:
        reason = f"{target} could not be written: {error.strerror or error}."
        raise NotWritten(reason, _remedy(error), where=str(error.filename or "")) from error
    return target


def scoring_files() -> list[str]:
    """The files of the package `scoring` that every bundle carries, relative to it, sorted."""
    found = [path for path in SCORING.rglob("*") if path.suffix == ".py" or path.name == "py.typed"]
    return sorted(path.relative_to(SCORING).as_posix() for path in found)


def refuse_existing(target: Path, force: bool) -> None:
    """Raise BundleExists unless `target` may be written: absent, empty, or a bundle and `force`."""
    if not target.exists():
        return
    if not target.is_dir():
        raise BundleExists(f"{target} is a file.", "Choose another --output.")
    if not any(target.iterdir()):
        return
    if not force:
        raise BundleExists(f"{target} exists.", "Choose another --output, or pass --force to replace it.")
    if not (target / MANIFEST).is_file():
        raise BundleExists(
            f"{target} is not a bundle, and --force only replaces bundles.",
            "Remove it yourself, or choose another --output.",
        )


@contextlib.contextmanager
def _staging(target: Path) -> Iterator[Path]:
    """A folder beside `target`, gone afterwards whatever happens; so are the parents made for it, if left empty."""
    missing = [parent for parent in target.parents if not parent.exists()]
    folder = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    try:
        folder.mkdir(parents=True)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for parent in missing:
            with contextlib.suppress(OSError):
                parent.rmdir()


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
        target = folder / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with source.open("rb") as reader, target.open("wb") as writer:
            while chunk := reader.read(_CHUNK):
                digest.update(chunk)
                writer.write(chunk)
                done += len(chunk)
                if progress:
                    progress(done, total)
        hashes[relative] = digest.hexdigest()
    return hashes


def carried_code(server: Server) -> dict[str, Path]:
    """{path in the bundle: file of this installation} of all Python that every bundle with that server carries."""
    found = {f"code/scoring/{relative}": SCORING / relative for relative in scoring_files()}
    return found | ({HOST_FOLDER + name: HOST / name for name in HOST_FILES} if server == "http" else {})


def _copy_code(folder: Path, server: Server) -> dict[str, str]:
    hashes = {}
    for relative, source in carried_code(server).items():
        content = source.read_bytes()
        (folder / relative).parent.mkdir(parents=True, exist_ok=True)
        (folder / relative).write_bytes(content)
        hashes[relative] = hashlib.sha256(content).hexdigest()
    return hashes


def _write_text(path: Path, text: str) -> str:
    content = text.encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    if path.name in _EXECUTABLE:
        path.chmod(path.stat().st_mode | 0o111)
    return hashlib.sha256(content).hexdigest()


def _put_in_place(folder: Path, target: Path) -> None:
    """Rename `folder` to `target`; a bundle that was there comes back if that fails."""
    if not target.exists():
        folder.rename(target)
        return
    old = folder.with_suffix(".replaced")
    target.rename(old)
    try:
        folder.rename(target)
    except BaseException:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _remedy(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "Free some space, or choose another --output."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "Choose an --output that you may write to."
    return "Nothing was left behind."
