"""The interface between a host and a bundle's scoring: all that a host may import from this package, beside its errors.

A host finds the scoring package in the bundle, which another version may have written; `VERSION` tells it whether
both agree. It grows whenever a host that knows the old interface would fail or get another answer.
"""

import socket
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from scoring.api.events import Event as Event
from scoring.api.events import encode as encode
from scoring.config import AdapterRef as AdapterRef
from scoring.config import Deployment as Deployment
from scoring.config import Limits as Limits
from scoring.generation.cache_salt import caller as caller
from scoring.limits.cpus import cores as cores
from scoring.limits.departure import Departure as Departure
from scoring.limits.departure import departure as departure
from scoring.lora.served import ADAPTER_NAME as ADAPTER_NAME
from scoring.lora.served import AdapterChange as AdapterChange
from scoring.lora.served import FollowList as FollowList
from scoring.lora.served import LoadAdapter as LoadAdapter
from scoring.lora.served import ServeThese as ServeThese
from scoring.lora.served import UnloadAdapter as UnloadAdapter
from scoring.lora.served import WantedAdapter as WantedAdapter
from scoring.lora.served import settled as settled
from scoring.strict_json.body import read_json as read_json
from scoring.telemetry.spans import Span as Span
from scoring.telemetry.spans import taken as taken

VERSION = 6


class ScoringEntry(Protocol):
    """The module `scoring.entry`; `init` and `run` are called through the bundle's score.py."""

    def attach(self, connection: socket.socket) -> None:
        """Have the engine of this process answer the front end at the other end; also before init."""

    def become_front_end(self, connection: socket.socket) -> None:
        """Use the engine at the other end in place of one here; before init. Ends the process when that closes."""

    def metadata(self) -> dict[str, Any]:
        """Metadata of the deployment and of what it runs on; only {"ready": False} before init."""

    def ready(self) -> bool:
        """Return True if requests are answered."""

    def statistics(self) -> dict[str, Any]:
        """Phase and its seconds; after init also the engine's counts, times and queue."""

    def reserve_adapters(self, places: int, rank: int) -> None:
        """Make room for so many adapters of at most such a rank, to be loaded while the model serves; before init."""

    def change_adapters(self, change: AdapterChange) -> None:
        """Load or unload adapters; raises AdapterRefused, AdapterNotServed, Overloaded, or NotReady before init."""

    def adapters(self) -> tuple[AdapterRef, ...] | None:
        """Adapters that requests may name now, the same tuple until they change; None before init."""

    def change(self, **limits: Any) -> None:
        """Change `queue_size` and `request_timeout_s` for later requests; does nothing before init."""

    def drain(self, timeout_s: float) -> bool:
        """Finish accepted requests and take no more; False if the time ran out."""


@runtime_checkable
class EventStream(Protocol):
    """Body of a streamed answer: an iterator of bytes, with more for hosts that have an event loop.

    `b"".join(encode(event))` over its events is what iterating over it gives; a host does one or the other.
    """

    ended: bool

    def listen(self, post: Callable[[list[Any]], None], mark: Any) -> None:
        """Have `post` called on a scoring thread whenever there are events; it must not wait.

        It gets the marks of all streams that share it and have events, once per step of the model. Events that came
        before are only there to take.
        """

    def take(self) -> list[Event]:
        """The events that are there; sets `ended` when only the last is missing, which `finish` gives."""

    def left(self) -> float:
        """Seconds after which `finish` is due even if the stream has not ended."""

    def finish(self) -> Event:
        """The last event, an answer or an error; blocks while it is made."""

    def close(self) -> None:
        """Stop the work on the stream."""
