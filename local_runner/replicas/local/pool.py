"""Replicas as processes on this machine, each with the model.

A request goes to the replica with the fewest in flight, or, if a session is named, to the session's own.
"""

import asyncio
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from local_runner.bundle.script import Answer
from local_runner.errors import ReplicaLost, RunnerFailed
from local_runner.host.reload import Tuning
from local_runner.process.devices import gpus
from local_runner.process.scratch import Scratch
from local_runner.protocol import errors
from local_runner.replicas.local import options as local_options
from local_runner.replicas.local.options import ReplicaOptions
from local_runner.replicas.local.shared_adapters import SharedAdapters
from local_runner.replicas.local.supervisor import Condition, ReplicaProcess
from local_runner.replicas.metrics import merged
from local_runner.replicas.pool import PendingRequest, PoolState
from scoring.errors import NotReady
from scoring.host_api import AdapterChange, AdapterRef, Deployment

_LONGEST_METADATA = 200
_LONGEST_FOLDER = 80


class LocalPool:
    """Pool of processes, started and watched here."""

    most_lost = 2
    pause_s = 0.02

    def __init__(self, bundle: Path, options: ReplicaOptions) -> None:
        self.copies = options.count
        self._sticky = options.sticky
        self._turn = 0
        deployment = Deployment.read(bundle / "code" / "deployment.json")
        environments = _shares(options.count, deployment)
        # A Unix socket's path has at most 107 bytes.
        short = len(tempfile.gettempdir()) < _LONGEST_FOLDER
        self._scratch = Scratch(None if short else Path("/tmp"))  # noqa: S108
        self._adapters = SharedAdapters(bundle, deployment, self._scratch.path)
        arguments = [options.log_format, "verbose" if options.verbose else "quiet"]
        self._replicas = [
            ReplicaProcess(index, bundle, self._scratch.path, environment, arguments)
            for index, environment in enumerate(environments)
        ]

    async def start(self) -> None:
        """Start every process, and again whenever it ends."""
        for replica in self._replicas:
            replica.start()

    @property
    def ready(self) -> int:
        """Number of replicas that take requests now."""
        return len(self._able())

    def watch(self) -> PoolState:
        """State of the replicas now; it has failed once each of them has."""
        first = self._replicas[0]
        phases = ", ".join(f"{each.index} {each.facts()['phase']}" for each in self._replicas)
        failure = first.failure if all(each.failure for each in self._replicas) else None
        return PoolState(phases, first.facts()["phase"], failure)

    async def submit(self, request: PendingRequest) -> Answer:
        """Ask one replica; metadata describes all of them. Raises Lost, NotReady, ReplicaLost."""
        replica = self._pick(request)
        if replica is None and request.lost:
            raise ReplicaLost("The replica that held this request ended, and no other is ready.", "Ask again shortly.")
        if replica is None:
            raise NotReady(f"No replica is ready: {self.watch().message}.", "Ask again shortly.")
        answer = await replica.ask(request.headers, request.raw)
        return self._with_replicas(answer) if _asks_for_metadata(request.raw) else answer

    def check(self, tuning: Tuning) -> None:
        """Accept every setting."""

    async def reload(self, tuning: Tuning) -> None:
        """Apply settings to every replica, also to those that start later."""
        await asyncio.gather(*(replica.tune(asdict(tuning)) for replica in self._replicas))

    @property
    def adapters(self) -> tuple[AdapterRef, ...] | None:
        """Adapters that the replicas serve now, the same tuple until they change; None for the bundle's own."""
        return self._adapters.refs

    async def change_adapters(self, change: AdapterChange) -> None:
        """Load or unload adapters in every replica, also in those that start later, or in none."""
        await self._adapters.change(change, self._able, self._replicas)

    async def drain(self, left_s: float) -> None:
        """End every process."""
        await asyncio.gather(*(replica.stop(left_s) for replica in self._replicas))
        self._scratch.remove()

    def statistics(self) -> dict[str, Any]:
        """Sums over the replicas, how many are in which state, and the facts of each."""
        states = {condition.value: 0 for condition in Condition if condition is not Condition.STOPPED}
        for replica in self._replicas:
            states[replica.condition.value] = states.get(replica.condition.value, 0) + 1
        sums = merged([replica.statistics for replica in self._replicas if replica.statistics])
        return {**sums, "replicas": states, "replica": [replica.facts() for replica in self._replicas]}

    def each(self) -> Sequence[Mapping[str, Any]]:
        """Facts and statistics of each replica."""
        return [{**replica.statistics, **replica.facts()} for replica in self._replicas]

    def _pick(self, request: PendingRequest) -> ReplicaProcess | None:
        """Choose the session's replica, or the least busy one; equally busy ones take turns."""
        able = [replica for replica in self._able() if str(replica.index) not in request.lost]
        session = request.headers.get(self._sticky) if self._sticky else None
        if session is not None:
            # Rendezvous hashing: while its replica is away a session moves to one other, and all other sessions stay.
            return max(able, key=lambda replica: _weight(session, replica.index), default=None)
        self._turn += 1
        count = len(self._replicas)
        return min(able, key=lambda each: (each.in_flight, (each.index - self._turn) % count), default=None)

    def _able(self) -> list[ReplicaProcess]:
        return [replica for replica in self._replicas if replica.condition is Condition.READY]

    def _with_replicas(self, answer: Answer) -> Answer:
        """Add the state of all replicas to a replica's metadata."""
        if answer.status != 200:
            return answer
        metadata = {**json.loads(answer.body), "replicas": [replica.facts() for replica in self._replicas]}
        return Answer(answer.status, answer.headers, json.dumps(metadata, ensure_ascii=False).encode())


def _shares(count: int, deployment: Deployment) -> list[dict[str, str]]:
    group = max(1, deployment.optimisation.tensor_parallel)
    try:
        return local_options.shares(count, group, gpus(os.environ))
    except ValueError as error:
        raise RunnerFailed(str(error), "Ask for fewer --replicas.") from None


def _asks_for_metadata(raw: str) -> bool:
    if len(raw) > _LONGEST_METADATA or '"mii_azure"' not in raw:
        return False
    try:
        return bool(json.loads(raw) == json.loads(errors.METADATA_BODY))
    except ValueError:
        return False


def _weight(session: str, index: int) -> bytes:
    return hashlib.sha256(f"{index} {session}".encode()).digest()
