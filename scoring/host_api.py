"""The interface between a host and a bundle's scoring: all that a host may import of this package, beside its errors.

A host finds the scoring package in the bundle, which another version may have written: `VERSION` says whether both
mean the same. It grows whenever a host that knows the old one would fail, or would be told something else.
"""

from typing import Any, Protocol

from scoring.config import Deployment as Deployment
from scoring.config import Limits as Limits
from scoring.generation.cache_salt import caller as caller
from scoring.strict_json.body import read_json as read_json
from scoring.telemetry.spans import Span as Span
from scoring.telemetry.spans import taken as taken

VERSION = 1


class ScoringEntry(Protocol):
    """The module `scoring.entry`; `init` and `run` are called through the bundle's score.py."""

    def metadata(self) -> dict[str, Any]:
        """What the deployment is and runs on; only {"ready": False} before init."""

    def ready(self) -> bool:
        """Whether requests are answered."""

    def statistics(self) -> dict[str, Any]:
        """Phase and its seconds; after init also counts, times and queue of the engine."""

    def change(self, **limits: Any) -> None:
        """Other values of `queue_size` and `request_timeout_s`, for the requests to come; nothing before init."""

    def drain(self, timeout_s: float) -> bool:
        """Finish what was accepted and take no more; False when the time ran out."""
