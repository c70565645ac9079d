"""Interface of replicas to the front that asks them: processes of this machine and Ray Serve stand behind it alike."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from local_runner.bundle.script import Answer
from local_runner.host.reload import Tuning
from scoring.host_api import AdapterChange, AdapterRef


class Lost(Exception):
    """Raised when the replica that holds a request is gone, before its answer began or amid a stream."""

    def __init__(self, replica: str, ended: bool = True) -> None:
        super().__init__(replica)
        self.replica = replica
        self.ended = ended  # False where it was only not reached: perhaps it lives


@dataclass
class PendingRequest:
    """Request on its way to a replica."""

    raw: str
    headers: dict[str, str]  # names in lower case
    lost: list[str] = field(default_factory=list)  # replicas that ended while they held it


@dataclass(frozen=True)
class PoolState:
    """State of a pool as it was last seen, for people and for who waits for it."""

    message: str  # why none is ready, without a full stop
    phase: str = ""  # of the replica that starts first; empty where only the front's own is known
    failure: Exception | None = None  # what keeps every replica from starting


class ReplicaPool(Protocol):
    """Replicas of one bundle; everything here runs on the event loop."""

    copies: int  # most replicas that share the requests
    most_lost: int  # after as many replicas lost, the request itself is suspected of ending them
    pause_s: float  # before a request that a replica lost or refused is asked again

    async def start(self) -> None:
        """Start the replicas, and keep them running; raises what prevents that. None needs to be ready yet."""

    @property
    def ready(self) -> int:
        """Number of replicas that take requests now."""

    def watch(self) -> PoolState:
        """State of the replicas now."""

    async def submit(self, request: PendingRequest) -> Answer:
        """Ask one replica once; raises Lost, as do the pieces of a streamed answer, or MiiAzureError."""

    def check(self, tuning: Tuning) -> None:
        """Raise RunnerFailed if a setting cannot change in these replicas."""

    async def reload(self, tuning: Tuning) -> None:
        """Apply checked settings to every replica, also to those that start later."""

    async def change_adapters(self, change: AdapterChange) -> None:
        """Load or unload adapters in every replica, also in those that start later, or in none; raises as a host."""

    @property
    def adapters(self) -> tuple[AdapterRef, ...] | None:
        """Adapters that the replicas serve now, the same tuple until they change; None for the bundle's own."""

    async def drain(self, left_s: float) -> None:
        """End the replicas, which have `left_s` seconds for what they hold."""

    def statistics(self) -> dict[str, Any]:
        """Sums over the replicas, and under `replicas` how many are in which state."""

    def each(self) -> Sequence[Mapping[str, Any]]:
        """Facts and statistics of each replica; none where they have no lasting names."""
