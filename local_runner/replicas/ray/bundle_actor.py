"""Actor on the front's node that replicas use: it serves the bundle's files, and keeps the replicas' statistics."""

import time
from pathlib import Path
from typing import Any

from local_runner.bundle import manifest

REPORT_S = 1.0
_GONE_S = 10.0
# Gauges; all other numbers count since the start, and stay counted when a replica goes.
_NOW = ("waiting", "active", "kv_tokens", "kv_capacity")


class BundleActor:
    """Actor that lives as long as its front; its methods are called from any node."""

    def __init__(self, bundle: str) -> None:
        self._bundle = Path(bundle)
        self._listed = {*manifest.read_manifest(self._bundle)["files"], manifest.MANIFEST}
        self._reports: dict[str, tuple[float, dict[str, Any]]] = {}
        self._gone: dict[str, Any] = {}

    def read(self, path: str, offset: int, size: int) -> bytes:
        """Read a piece of one of the bundle's files; raises KeyError for any other file."""
        if path not in self._listed:
            raise KeyError(path)
        with (self._bundle / path).open("rb") as file:
            file.seek(offset)
            return file.read(size)

    def digest(self) -> str:
        """Hash of the whole bundle."""
        return str(manifest.read_manifest(self._bundle)["bundle"])

    def sizes(self) -> dict[str, int]:
        """Size in bytes of every file."""
        return {path: (self._bundle / path).stat().st_size for path in sorted(self._listed)}

    def report(self, replica: str, statistics: dict[str, Any]) -> None:
        """Replace a replica's statistics by its latest."""
        self._reports[replica] = (time.monotonic(), statistics)

    def total(self) -> dict[str, Any]:
        """Sum of the statistics of all replicas, including those that are gone; empty before the first report."""
        from local_runner.replicas.metrics import merged

        oldest = time.monotonic() - _GONE_S
        for replica, (when, statistics) in list(self._reports.items()):
            if when < oldest:
                del self._reports[replica]
                self._gone = merged([each for each in (self._gone, _over(statistics)) if each])
        every = [self._gone, *(statistics for _, statistics in self._reports.values())]
        total: dict[str, Any] = merged([each for each in every if each])
        return total


def _over(statistics: dict[str, Any]) -> dict[str, Any]:
    """Counters of a replica that is gone, without its gauges."""
    return {name: 0 if name in _NOW else value for name, value in statistics.items()}
