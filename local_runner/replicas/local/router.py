"""Front of `--replicas N`: a Host whose requests are answered by processes on this machine, each with the model.

A request goes to the replica with the fewest in flight, or, if a session is named, to the session's own. If its
replica is lost before a byte came back, another is asked once, because scoring the same body twice changes nothing.
"""

import asyncio
import hashlib
import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from local_runner.bundle.script import Answer
from local_runner.errors import ReplicaLost, RunnerFailed
from local_runner.host.host import HostState
from local_runner.host.reload import Tuning
from local_runner.process.scratch import Scratch
from local_runner.protocol import errors
from local_runner.replicas.frontend import Frontend
from local_runner.replicas.local import options as local_options
from local_runner.replicas.local.options import ReplicaOptions
from local_runner.replicas.local.supervisor import Condition, Lost, ReplicaProcess
from local_runner.replicas.metrics import ReplicaMetrics, merged
from scoring.errors import InternalError, NotReady

_PAUSE_S = 0.02
_ATTEMPTS = 2
_LONGEST_METADATA = 200
_LONGEST_FOLDER = 80


class ReplicaRouter(Frontend):
    """Answers requests by processes on this machine."""

    def __init__(self, bundle: Path, options: ReplicaOptions) -> None:
        super().__init__(bundle, options.count)
        self._sticky = options.sticky
        self._turn = 0
        # A Unix socket's path has at most 107 bytes.
        short = len(tempfile.gettempdir()) < _LONGEST_FOLDER
        self._scratch = Scratch(None if short else Path("/tmp"))  # noqa: S108
        arguments = [options.log_format, "verbose" if options.verbose else "quiet"]
        self.replicas = [
            ReplicaProcess(index, bundle, self._scratch.path, environment, arguments)
            for index, environment in enumerate(self._shares(options.count))
        ]
        self.metrics.add(ReplicaMetrics(lambda: self.replicas))

    def _shares(self, count: int) -> list[dict[str, str]]:
        group = max(1, self.deployment.optimisation.tensor_parallel)
        try:
            return local_options.shares(count, group, local_options.gpus(os.environ), os.environ)
        except ValueError as error:
            raise RunnerFailed(str(error), "Ask for fewer --replicas.") from None

    async def load(self) -> None:
        """Start the replicas and wait for the first; if none starts, raise the cause and leave the state at FAILED."""
        for replica in self.replicas:
            replica.start()
        while self.state is HostState.LOADING and not self._ready_replicas():
            if all(replica.failure for replica in self.replicas):
                self.change(HostState.FAILED)
                await self._end(0.0)
                raise self.replicas[0].failure or InternalError("No replica started.")
            await asyncio.sleep(_PAUSE_S)
        if self.state is HostState.LOADING:
            self.change(HostState.READY)

    async def tune(self, tuning: Tuning) -> None:
        """Apply other settings, here and in every replica."""
        await super().tune(tuning)
        await asyncio.gather(*(replica.tune(asdict(tuning)) for replica in self.replicas))

    @property
    def ready(self) -> bool:
        """True if a replica would score a request sent now."""
        return self.state is HostState.READY and bool(self._ready_replicas())

    def unready(self) -> NotReady:
        """Error that explains why the front is not ready."""
        if self.state is HostState.DRAINING:
            return super().unready()
        each = ", ".join(f"{replica.index} {replica.facts()['phase']}" for replica in self.replicas)
        return NotReady(f"No replica is ready: {each}.", "Ask again shortly.")

    def statistics(self) -> dict[str, Any]:
        """Statistics: the front's own phase, the sums over the replicas, and the state of each."""
        own = self.own_phase()
        if self.state is HostState.LOADING:
            own["phase"] = self.replicas[0].facts()["phase"]
        states = {condition.value: 0 for condition in Condition if condition is not Condition.STOPPED}
        for replica in self.replicas:
            states[replica.condition.value] = states.get(replica.condition.value, 0) + 1
        return {
            **merged([replica.told for replica in self.replicas if replica.told]),
            **own,
            "replicas": states,
            "replica": [replica.facts() for replica in self.replicas],
            "asked_again": self._asked_again,
        }

    async def ask(self, raw: str, headers: dict[str, str]) -> Answer:
        """Ask a replica, and a second one if the first is lost; metadata describes all replicas."""
        answer = await self._ask(raw, headers)
        return self._with_replicas(answer) if _asks_for_metadata(raw) else answer

    async def _ask(self, raw: str, headers: dict[str, str]) -> Answer:
        lost: list[int] = []
        for _ in range(_ATTEMPTS):
            replica = self._pick(headers, lost)
            if replica is None:
                break
            try:
                self._asked_again += bool(lost)
                return await replica.ask(headers, raw)
            except Lost:
                lost.append(replica.index)
        where = " and ".join(str(index) for index in lost)
        hint = "Ask again shortly." if len(lost) < _ATTEMPTS else "Do not send it again as it is."
        raise ReplicaLost(f"The request was lost with replica {where}, which ended.", hint)

    def _pick(self, headers: dict[str, str], lost: list[int]) -> ReplicaProcess | None:
        """Choose the session's replica, or the least busy one; equally busy ones take turns."""
        able = [replica for replica in self._ready_replicas() if replica.index not in lost]
        session = headers.get(self._sticky) if self._sticky else None
        if session is not None:
            # Rendezvous hashing: while its replica is away a session moves to one other, and all other sessions stay.
            return max(able, key=lambda replica: _weight(session, replica.index), default=None)
        self._turn += 1
        count = len(self.replicas)
        return min(able, key=lambda each: (each.in_flight, (each.index - self._turn) % count), default=None)

    def _ready_replicas(self) -> list[ReplicaProcess]:
        return [replica for replica in self.replicas if replica.condition is Condition.READY]

    def _with_replicas(self, answer: Answer) -> Answer:
        """Add the state of all replicas to a replica's metadata."""
        if answer.status != 200:
            return answer
        told = {**json.loads(answer.body), "replicas": [replica.facts() for replica in self.replicas]}
        return Answer(answer.status, answer.headers, json.dumps(told, ensure_ascii=False).encode())

    async def _end(self, left: float) -> None:
        await asyncio.gather(*(replica.stop(left) for replica in self.replicas))
        self._scratch.remove()


def _asks_for_metadata(raw: str) -> bool:
    if len(raw) > _LONGEST_METADATA or '"mii_azure"' not in raw:
        return False
    try:
        return bool(json.loads(raw) == json.loads(errors.METADATA_BODY))
    except ValueError:
        return False


def _weight(session: str, index: int) -> bytes:
    return hashlib.sha256(f"{index} {session}".encode()).digest()
