"""Front of `--engine ray`: a Host whose requests are answered by replicas on Ray Serve.

A request that this front has accepted survives the loss of its replica or node: another is asked, because scoring
the same body twice changes nothing. A stream that has sent a piece cannot be restarted and ends with an error event.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from local_runner.bundle.script import Answer
from local_runner.errors import ReplicaLost, RunnerFailed
from local_runner.host.host import HostState
from local_runner.protocol.errors import error_from_body
from local_runner.replicas.frontend import Frontend
from local_runner.replicas.ray.cluster import Cluster, Replicas
from local_runner.replicas.ray.options import RayOptions
from scoring.errors import InternalError, MiiAzureError, NotReady

logger = logging.getLogger(__name__)

_LOOK_S = 0.5
# After this many replicas lost while they held one request, the request itself is suspected.
_MOST_LOST = 3
_PAUSE_S = 0.2
_PATIENCE_S = 30.0  # to wait for a node that could hold a replica
_SILENCE_S = 5.0
_STOP_S = 5.0  # for idle replicas to end
_ELSEWHERE = {"not_ready", "rank_lost"}


class RayRouter(Frontend):
    """Answers requests by replicas on Ray Serve."""

    def __init__(self, bundle: Path, options: RayOptions) -> None:
        super().__init__(bundle, options.max_replicas)
        self._options = options
        self._cluster = Cluster(bundle, self.deployment, options)
        self._replicas = Replicas()
        self._unary: Any = None
        self._streaming: Any = None
        self._looking: asyncio.Task[None] | None = None
        self._lost: tuple[type[Exception], ...] = ()
        # For Ray's blocking calls; one thread, so that they keep their order.
        self._ray = ThreadPoolExecutor(1, thread_name_prefix="ray")

    async def load(self) -> None:
        """Deploy, and wait until a replica answers; on failure, raise the cause and leave the state at FAILED."""
        try:
            handle = await self._call(self._cluster.deploy, self._slots // self._copies)
            self._unary = handle.options(method_name="score")
            self._streaming = handle.options(method_name="stream", stream=True)
            self._lost = _lost_errors()
            await self._first_replica()
        except Exception as error:
            self.change(HostState.FAILED)
            await self._call(self._cluster.stop, False)  # do not wait for a replica that never started
            if isinstance(error, MiiAzureError):
                raise
            told = (str(error).strip() or "no reason given").splitlines()[0]
            raise RunnerFailed(f"Ray Serve did not start the replicas: {type(error).__name__}: {told}") from error
        self._looking = asyncio.create_task(self._look())
        if self.state is HostState.LOADING:
            self.change(HostState.READY)

    async def _first_replica(self) -> None:
        began = time.monotonic()
        while not self._replicas.running and self.state is HostState.LOADING:
            self._replicas = await self._call(self._cluster.look)
            waited = time.monotonic() - began
            if self._replicas.failed or waited > self._options.start_s:
                raise self._cluster.why_not(self._replicas)
            if waited > min(_PATIENCE_S, self._options.start_s) and (error := self._cluster.too_small()):
                raise error
            await asyncio.sleep(_PAUSE_S)

    async def _look(self) -> None:
        """Keep the number of replicas current; while the cluster does not answer, none is counted."""
        while True:
            await asyncio.sleep(_LOOK_S)
            try:
                async with asyncio.timeout(_SILENCE_S):
                    self._replicas = await self._call(self._cluster.look)
            except Exception as error:
                logger.warning("The Ray cluster does not answer: %s: %s", type(error).__name__, error)
                self._replicas = Replicas(message="the Ray cluster does not answer")

    @property
    def ready(self) -> bool:
        """True if a replica would score a request sent now."""
        return self.state is HostState.READY and self._replicas.running > 0

    def unready(self) -> NotReady:
        """Error that explains why the front is not ready."""
        if self.state is not HostState.READY:
            return super().unready()
        why = self._replicas.message.strip() or f"{self._replicas.starting} are starting"
        return NotReady(f"No replica is running: {why.splitlines()[0]}.", "Ask again shortly.")

    def statistics(self) -> dict[str, Any]:
        """Statistics: the front's own phase, the sums over the replicas, and their number."""
        states = {state.lower(): count for state, count in (self._replicas.states or {}).items()}
        return {
            **self._replicas.told,
            **self.own_phase(),
            "replicas": {"running": self._replicas.running, **states},
            "asked_again": self._asked_again,
        }

    async def ask(self, raw: str, headers: dict[str, str]) -> Answer:
        """Ask a replica; another is asked if it, or its node, is lost before it has answered."""
        streams, losses = '"stream"' in raw, _Losses()  # only a guess: a generator costs more, and most need none
        while True:
            try:
                head = await (self._begin(raw, headers) if streams else self._whole(raw, headers))
                if head is not None and not _says_not_ready(head):
                    return head
                if head is None:
                    streams = True
                    continue
            except self._lost as error:
                losses.add(error)
                self._asked_again += 1
            await asyncio.sleep(_PAUSE_S)

    async def _whole(self, raw: str, headers: dict[str, str]) -> Answer | None:
        """Complete answer; None if it turns out to be a stream."""
        response = self._unary.remote(raw, headers)
        try:
            head = await response
        except asyncio.CancelledError:
            response.cancel()
            raise
        return head and Answer(head[0], head[1], head[2])

    async def _begin(self, raw: str, headers: dict[str, str]) -> Answer:
        """Answer whose pieces follow, unless it is complete."""
        response = self._streaming.remote(raw, headers)
        try:
            status, sent, body = await anext(response)
        except asyncio.CancelledError:
            response.cancel()
            raise
        if body is not None:
            return Answer(status, sent, body)
        stream = _Stream(response, raw, headers)
        return Answer(status, sent, chunks=stream, close=stream.close)

    async def pieces(self, answer: Answer) -> AsyncGenerator[bytes, None]:
        """Yield the pieces of the replica that began, or of another one if it was lost before its first."""
        stream, losses = answer.chunks, _Losses()
        if not isinstance(stream, _Stream):
            raise InternalError("The answer is not a stream of this front's.")
        while True:
            try:
                async for piece in stream:
                    yield piece
                return
            except self._lost as error:
                if stream.sent:
                    raise ReplicaLost(
                        "The replica that streamed this answer is gone.", "Ask again; another one answers."
                    ) from error
                losses.add(error)
            self._asked_again += 1
            again = await self.ask_in_time(stream.raw, stream.headers)
            if not isinstance(again.chunks, _Stream):
                yield b"data: " + again.body + b"\n\n"
                return
            stream.response = again.chunks.response

    async def _end(self, left: float) -> None:
        if self._looking is not None:
            self._looking.cancel()
        stopping = asyncio.ensure_future(self._call(self._cluster.stop))
        await asyncio.wait([stopping], timeout=left + _STOP_S)

    async def _call(self, call: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._ray, call, *arguments)


class _Stream:
    """Stream of a replica together with its request, so that it can be repeated; closing it cancels it there."""

    def __init__(self, response: Any, raw: str, headers: dict[str, str]) -> None:
        self.response = response
        self.raw = raw
        self.headers = headers
        self.sent = False
        self._ended = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        try:
            piece: bytes = await anext(self.response)
        except StopAsyncIteration:
            self._ended = True
            raise
        self.sent = True
        return piece

    def close(self) -> None:
        if not self._ended:
            self._ended = True
            self.response.cancel()


class _Losses:
    """Number of replicas that were lost while they held one request."""

    def __init__(self) -> None:
        self._count = 0

    def add(self, error: Exception) -> None:
        """Count a loss; raises ReplicaLost if the request itself must be what ends them."""
        if type(error).__name__ == "ActorUnavailableError":
            return  # not reached; unknown if the replica died, and over this request
        self._count += 1
        logger.warning("A replica was lost with a request; it is asked of another: %s", type(error).__name__)
        if self._count >= _MOST_LOST:
            raise ReplicaLost(
                f"{self._count} replicas ended while they held this request.", "Do not send it again as it is."
            )


def _says_not_ready(answer: Answer) -> bool:
    """True if a replica refused because it is stopping or broken: another one may answer."""
    if answer.status != NotReady.http_status:
        return False
    return error_from_body(answer.body, answer.status).code in _ELSEWHERE


def _lost_errors() -> tuple[type[Exception], ...]:
    """Errors that Ray raises for a call whose replica or node is gone, or whose answer is lost with it."""
    from ray import exceptions
    from ray.serve.exceptions import ReplicaUnavailableError

    ended = (exceptions.RayActorError, exceptions.NodeDiedError, exceptions.WorkerCrashedError)
    return (*ended, exceptions.ObjectLostError, ReplicaUnavailableError)
