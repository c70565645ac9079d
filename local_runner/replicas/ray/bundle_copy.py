"""Bundle access for the nodes of a Ray cluster: by path if that leads to the same bundle, else by copy.

A copy is read piece by piece from the node that serves, through an actor and Ray's object store, and stays on the
node's disk under its hash. Imports nothing of `scoring`: a replica may import only the bundle's own.
"""

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from local_runner.bundle import manifest

PIECE = 16 << 20

Read = Callable[[list[tuple[str, int, int]]], Iterable[bytes]]


@dataclass(frozen=True)
class Reference:
    """Reference by which one node names a bundle to another."""

    path: str
    digest: str  # the manifest's `bundle`
    desk: str  # name of the actor that serves its files


def reference(bundle: Path, desk: str) -> Reference:
    """Create a reference to the bundle at `bundle`; raises NotABundle."""
    return Reference(str(bundle), manifest.read_manifest(bundle)["bundle"], desk)


def locate(bundle: Reference, namespace: str) -> Path:
    """Find the bundle on this node, fetched if its path leads nowhere here; raises BundleEdited, RunnerFailed."""
    if _is(Path(bundle.path), bundle.digest):
        return Path(bundle.path)
    import ray

    desk = ray.get_actor(bundle.desk, namespace)

    def read(pieces: list[tuple[str, int, int]]) -> Iterator[bytes]:
        # One piece is read ahead of the one being written, so at most two are held here.
        pending: Any = None
        for piece in pieces:
            following = desk.read.remote(*piece)
            if pending is not None:
                yield ray.get(pending)
            pending = following
        if pending is not None:
            yield ray.get(pending)

    return fetch(bundle.digest, ray.get(desk.sizes.remote()), read)


def fetch(digest: str, sizes: dict[str, int], read: Read, root: Path | None = None) -> Path:
    """Copy a bundle into this node's bundle cache, once; `read` yields (path, offset, size) in order."""
    root = root or Path(tempfile.gettempdir()) / f"mii-azure-bundles-{os.getuid()}"
    _own(root)
    if not manifest.is_plain(digest):
        raise _failed(f"{digest[:80]!a} is no hash of a bundle.")
    folder, partial = root / digest, root / f".{digest}.partial"
    with _locked(root / f".{digest}.lock"):
        if _is(folder, digest):
            return folder
        for left in (folder, partial):
            shutil.rmtree(left, ignore_errors=True)
        _check_room(root, sum(sizes.values()))
        _write(partial, sizes, read)
        for weights in (False, True):
            manifest.verify_hashes(partial, weights)
        partial.rename(folder)
    return folder


def _write(folder: Path, sizes: dict[str, int], read: Read) -> None:
    pieces = [(path, at, PIECE) for path, size in sizes.items() for at in range(0, max(size, 1), PIECE)]
    for (path, at, _), data in zip(pieces, read(pieces), strict=True):
        target = folder / path
        if not manifest.is_plain_path(path):
            raise _failed(f"The bundle names a file outside itself: {path}.")
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb" if at == 0 else "ab") as file:
            file.write(data)


def _is(folder: Path, digest: str) -> bool:
    """True if `folder` says that it is the bundle; the runner verifies every file later."""
    try:
        return bool(manifest.read_manifest(folder)["bundle"] == digest)
    except Exception:  # no folder, no permission, no manifest, another kind of folder
        return False


def _own(root: Path) -> None:
    """Create the bundle cache; one that another user could write to is refused."""
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = root.lstat()
    if status.st_uid != os.getuid() or not stat.S_ISDIR(status.st_mode) or status.st_mode & 0o022:
        raise _failed(f"{root} belongs to somebody else, or others may write in it.")


def _check_room(root: Path, needed: int) -> None:
    free = shutil.disk_usage(root).free
    if free < needed:
        raise _failed(
            f"The bundle needs {needed:,} bytes under {root}; {free:,} are free.",
            "Make room, point TMPDIR of this node elsewhere, or share the bundle's folder between the nodes.",
        )


def _failed(sentence: str, hint: str = "") -> Exception:
    from local_runner.errors import RunnerFailed

    return RunnerFailed(sentence, hint)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of one bundle: the replicas of a node fetch it once."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
