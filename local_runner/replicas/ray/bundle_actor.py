"""The actor on the front's node that replicas turn to: it reads the bundle out, and keeps what they tell."""

import time
from pathlib import Path
from typing import Any

from local_runner.bundle import manifest

TELL_S = 1.0
_GONE_S = 10.0
# What is there now; all else counts since the start, and stays counted when a replica goes.
_NOW = ("waiting", "active", "kv_tokens", "kv_capacity")


class BundleActor:
    """Lives as long as its front; its methods are called from any node."""

    def __init__(self, bundle: str) -> None:
        self._bundle = Path(bundle)
        self._listed = {*manifest.read_manifest(self._bundle)["files"], manifest.MANIFEST}
        self._told: dict[str, tuple[float, dict[str, Any]]] = {}
        self._gone: dict[str, Any] = {}

    def read(self, path: str, offset: int, size: int) -> bytes:
        """A piece of one of the bundle's files; raises KeyError for any other file."""
        if path not in self._listed:
            raise KeyError(path)
        with (self._bundle / path).open("rb") as file:
            file.seek(offset)
            return file.read(size)

    def digest(self) -> str:
        """The hash of the whole bundle."""
        return str(manifest.read_manifest(self._bundle)["bundle"])

    def sizes(self) -> dict[str, int]:
        """The bytes of every file."""
        return {path: (self._bundle / path).stat().st_size for path in sorted(self._listed)}

    def tell(self, replica: str, statistics: dict[str, Any]) -> None:
        """Keep a replica's statistics in place of its last ones."""
        self._told[replica] = (time.monotonic(), statistics)

    def told(self) -> dict[str, Any]:
        """The sum over all replicas, those that are gone included; empty before the first has told anything."""
        from local_runner.replicas.metrics import merged

        oldest = time.monotonic() - _GONE_S
        for replica, (when, statistics) in list(self._told.items()):
            if when < oldest:
                del self._told[replica]
                self._gone = merged([each for each in (self._gone, _over(statistics)) if each])
        every = [self._gone, *(statistics for _, statistics in self._told.values())]
        found: dict[str, Any] = merged([each for each in every if each])
        return found


def _over(statistics: dict[str, Any]) -> dict[str, Any]:
    """What a replica that is gone counted; it holds nothing any more."""
    return {name: 0 if name in _NOW else value for name, value in statistics.items()}
