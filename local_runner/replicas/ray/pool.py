"""Replicas on Ray Serve, asked through its handle."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from local_runner.bundle.script import Answer
from local_runner.errors import RunnerFailed
from local_runner.host.host import slots_of
from local_runner.host.reload import Tuning
from local_runner.replicas.pool import Lost, PendingRequest, PoolState
from local_runner.replicas.ray.cluster import Cluster, Replicas
from local_runner.replicas.ray.options import RayOptions
from scoring.errors import AdapterRefused, MiiAzureError
from scoring.host_api import AdapterChange, AdapterRef, Deployment

logger = logging.getLogger(__name__)

_LOOK_S = 0.5
_PATIENCE_S = 30.0  # to wait for a node that could hold a replica
_SILENCE_S = 5.0
_STOP_S = 5.0  # for idle replicas to end


class RayPool:
    """Pool of replicas that Ray Serve starts, scales and replaces."""

    most_lost = 3
    pause_s = 0.2  # until the handle knows of a loss

    def __init__(self, bundle: Path, options: RayOptions) -> None:
        deployment = Deployment.read(bundle / "code" / "deployment.json")
        self.copies = options.max_replicas
        self._slots = slots_of(deployment.limits)
        self._options = options
        self._cluster = Cluster(bundle, deployment, options)
        self._replicas = Replicas()
        self._answered = False  # a replica has run
        self._failure: Exception | None = None
        self._unary: Any = None
        self._streaming: Any = None
        self._looking: asyncio.Task[None] | None = None
        self._lost: tuple[type[Exception], ...] = ()
        # For Ray's blocking calls; one thread, so that they keep their order.
        self._ray = ThreadPoolExecutor(1, thread_name_prefix="ray")

    async def start(self) -> None:
        """Deploy, and keep the number of replicas current; raises RunnerFailed."""
        try:
            handle = await self._call(self._cluster.deploy, self._slots)
            self._unary = handle.options(method_name="score")
            self._streaming = handle.options(method_name="stream", stream=True)
            self._lost = _lost_errors()
        except MiiAzureError:
            raise
        except Exception as error:
            raise _not_started(error) from error
        self._looking = asyncio.create_task(self._look())

    @property
    def ready(self) -> int:
        """Number of replicas that take requests now."""
        return self._replicas.running

    def watch(self) -> PoolState:
        """State of the replicas, half a second old at most while the cluster answers."""
        why = self._replicas.message.strip() or f"{self._replicas.starting} are starting"
        return PoolState(why.splitlines()[0].removesuffix("."), failure=self._failure)

    async def submit(self, request: PendingRequest) -> Answer:
        """Have Ray Serve's router choose a replica, and ask it once; raises Lost."""
        try:
            # Only a guess: a generator costs more, and most requests need none.
            whole = None if '"stream"' in request.raw else await self._whole(request)
            answer = whole or await self._begin(request)
        except self._lost as error:
            raise _loss(error) from error
        if not self._replicas.running:  # the answer is newer than the last look
            self._replicas = replace(self._replicas, running=1)
        return answer

    def check(self, tuning: Tuning) -> None:
        """Raise RunnerFailed for limits, which the replicas have from the bundle."""
        if tuning.limits:
            names = " and ".join(tuning.limits)
            raise RunnerFailed(f"{names} cannot change in a Ray cluster.", "Its replicas go by the bundle.")

    async def reload(self, tuning: Tuning) -> None:
        """Leave the replicas as they are: only settings of the front may change."""

    async def change_adapters(self, change: AdapterChange) -> None:
        """Refuse: replicas of a cluster come and go with the bundle's adapters."""
        raise AdapterRefused("Replicas in a Ray cluster serve the bundle's adapters.", "Generate a bundle with it.")

    @property
    def adapters(self) -> tuple[AdapterRef, ...] | None:
        """The bundle's own."""
        return None

    async def drain(self, left_s: float) -> None:
        """Stop the application, waiting for its replicas if any has run."""
        if self._looking is not None:
            self._looking.cancel()
        stopping = asyncio.ensure_future(self._call(self._cluster.stop, self._answered))
        await asyncio.wait([stopping], timeout=left_s + _STOP_S)

    def statistics(self) -> dict[str, Any]:
        """Sums over the replicas, and how many are in which state."""
        states = {state.lower(): count for state, count in (self._replicas.states or {}).items()}
        return {**self._replicas.statistics, "replicas": {"running": self._replicas.running, **states}}

    def each(self) -> Sequence[Mapping[str, Any]]:
        """Return nothing: replicas come and go, and the number of labels would grow without end."""
        return ()

    async def _look(self) -> None:
        """Keep the number of replicas current; while the cluster does not answer, none is counted."""
        began = time.monotonic()
        while True:
            try:
                async with asyncio.timeout(_SILENCE_S if self._answered else None):
                    self._replicas = await self._call(self._cluster.look)
                    self._answered = self._answered or self._replicas.running > 0
                    self._failure = None if self._answered else await self._obstacle(time.monotonic() - began)
            except Exception as error:
                logger.warning("The Ray cluster does not answer: %s: %s", type(error).__name__, error)
                self._replicas = Replicas(message="the Ray cluster does not answer")
                self._failure = None if self._answered else _not_started(error)
            await asyncio.sleep(_LOOK_S)

    async def _obstacle(self, waited_s: float) -> Exception | None:
        """Error if no replica will ever run, or the first one took too long."""
        if self._replicas.failed or waited_s > self._options.start_s:
            error: Exception = await self._call(self._cluster.why_not, self._replicas)
            return error
        if waited_s > _PATIENCE_S:
            too_small: Exception | None = await self._call(self._cluster.too_small)
            return too_small
        return None

    async def _whole(self, request: PendingRequest) -> Answer | None:
        """Complete answer; None if it turns out to be a stream."""
        response = self._unary.remote(request.raw, request.headers)
        try:
            head = await response
        except asyncio.CancelledError:
            response.cancel()
            raise
        return head and Answer(head[0], head[1], head[2])

    async def _begin(self, request: PendingRequest) -> Answer:
        """Answer whose pieces follow, unless it is complete."""
        response = self._streaming.remote(request.raw, request.headers)
        try:
            status, sent, body = await anext(response)
        except asyncio.CancelledError:
            response.cancel()
            raise
        if body is not None:
            return Answer(status, sent, body)
        stream = _Pieces(response, self._lost)
        return Answer(status, sent, chunks=stream, close=stream.close)

    async def _call(self, call: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._ray, call, *arguments)


class _Pieces(AsyncIterator[bytes]):
    """Pieces that a replica streams; closing it cancels the work there."""

    def __init__(self, response: Any, lost: tuple[type[Exception], ...]) -> None:
        self._response = response
        self._lost = lost
        self._ended = False

    async def __anext__(self) -> bytes:
        try:
            piece: bytes = await anext(self._response)
            return piece
        except StopAsyncIteration:
            self._ended = True
            raise
        except self._lost as error:
            raise _loss(error) from error

    def close(self) -> None:
        """Cancel the stream: nobody listens any more."""
        if not self._ended:
            self._ended = True
            self._response.cancel()


def _loss(error: Exception) -> Lost:
    """Loss as the front counts it; of an actor that is only not reached it is unknown whether this request ended it."""
    name = type(error).__name__
    return Lost(name, ended=name != "ActorUnavailableError")


def _not_started(error: Exception) -> RunnerFailed:
    reason = (str(error).strip() or "no reason given").splitlines()[0]
    failure = RunnerFailed(f"Ray Serve did not start the replicas: {type(error).__name__}: {reason}")
    failure.__cause__ = error
    return failure


def _lost_errors() -> tuple[type[Exception], ...]:
    """Errors that Ray raises for a call whose replica or node is gone, or whose answer is lost with it."""
    from ray import exceptions
    from ray.serve.exceptions import ReplicaUnavailableError

    ended = (exceptions.RayActorError, exceptions.NodeDiedError, exceptions.WorkerCrashedError)
    return (*ended, exceptions.ObjectLostError, ReplicaUnavailableError)
