"""Front of several replicas: a Host whose requests a pool of replicas answers, counted, timed and asked again here.

If a replica is lost before a byte of its answer came back, another is asked, because scoring the same body twice
changes nothing. A stream that has sent a piece cannot be begun again and ends with an error event.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from local_runner.bundle.script import Answer
from local_runner.errors import ReplicaLost
from local_runner.host import departures
from local_runner.host.host import Host, HostState, internal
from local_runner.host.reload import Tuning
from local_runner.protocol import errors
from local_runner.replicas.metrics import ReplicaMetrics
from local_runner.replicas.pool import Lost, PendingRequest, ReplicaPool
from scoring.errors import InternalError, MiiAzureError, NotReady, Overloaded, RequestTimeout
from scoring.host_api import AdapterChange, AdapterRef

logger = logging.getLogger(__name__)

_PAUSE_S = 0.02
_GRACE_S = 2.0  # a replica's own timeout fires first
# Headers that stop at the front.
_CREDENTIALS = {"authorization", "x-api-key", "api-key"}
# Errors of a replica that is stopping or broken: another one may answer.
_ELSEWHERE = {"not_ready", "rank_lost"}


class Frontend(Host):
    """Answers requests by the replicas of a pool, wherever they run."""

    def __init__(self, bundle: Path, pool: ReplicaPool) -> None:
        self._pool = pool
        super().__init__(bundle / "code", pool.copies)
        self._busy = 0  # requests not answered yet
        self._asked_again = 0
        self.metrics.add(ReplicaMetrics(pool.each))

    async def load(self) -> None:
        """Start the replicas and wait for the first; if none starts, raise the cause and leave the state at FAILED."""
        try:
            await self._pool.start()
            while self.state is HostState.LOADING and not self._pool.ready:
                if failure := self._pool.watch().failure:
                    raise failure
                await asyncio.sleep(_PAUSE_S)
            if self.state is HostState.LOADING:
                await self.follow_adapters(self._tuning.adapters)
        except Exception:
            self.change(HostState.FAILED)
            await self._pool.drain(0.0)
            raise
        if self.state is HostState.LOADING:
            self.change(HostState.READY)

    def adapters(self) -> tuple[AdapterRef, ...] | None:
        return self._pool.adapters

    async def change_adapters(self, change: AdapterChange) -> None:
        if self.adapter_policy.root is None:
            await super().change_adapters(change)
        await self._pool.change_adapters(change)

    def check(self, tuning: Tuning) -> None:
        """Raise RunnerFailed if a setting cannot change while the replicas run."""
        self._pool.check(tuning)

    async def tune(self, tuning: Tuning) -> None:
        """Apply new settings, here and in every replica."""
        await super().tune(tuning)
        await self._pool.reload(tuning)

    @property
    def ready(self) -> bool:
        """True if a replica would score a request sent now."""
        return self.state is HostState.READY and self._pool.ready > 0

    @property
    def lost(self) -> bool:
        """Constant False: replicas are restarted behind a front that stays."""
        return False

    def unready(self) -> NotReady:
        """Error that explains why the front is not ready."""
        if self.state is HostState.DRAINING:
            return super().unready()
        return NotReady(f"No replica is ready: {self._pool.watch().message}.", "Ask again shortly.")

    def statistics(self) -> dict[str, Any]:
        """Statistics: the front's own phase, the sums over the replicas, and their states."""
        own = self.own_phase()
        if self.state is HostState.LOADING:
            own["phase"] = self._pool.watch().phase or own["phase"]
        return {**self._pool.statistics(), **own, "asked_again": self._asked_again}

    async def chunks(self, answer: Answer) -> AsyncGenerator[bytes, None]:
        """Yield the pieces of a streamed answer; closing this cancels the stream in its replica."""
        began: float | None = time.perf_counter()
        self._streams += 1
        try:
            if not isinstance(answer.chunks, AsyncIterator):
                raise InternalError("The answer is not a stream of this front's.")
            async for piece in answer.chunks:
                if began is not None:
                    self.metrics.first_event(time.perf_counter() - began)
                    answer.began()
                    began = None
                yield piece
        except Exception as error:
            known = error if isinstance(error, MiiAzureError) else internal(error)
            yield _event(errors.body_of(known))
        finally:
            self._streams -= 1
            answer.close()

    async def _score(self, raw: str, headers: Mapping[str, str]) -> Answer:
        if not self.ready:
            raise self.unready()
        if self._busy >= self._slots:
            raise Overloaded(f"{self._busy} requests are in flight already.", "Ask again later.")
        self._busy += 1
        sent = {key.lower(): headers[key] for key in headers if isinstance(headers[key], str)}
        request = PendingRequest(raw, {key: sent[key] for key in sent if key not in _CREDENTIALS})
        try:
            asked = asyncio.ensure_future(self._in_time(request))
            with departures.followed(asked):
                answer = await asked
        finally:
            self._busy -= 1
        return self._resumable(request, answer) if answer.chunks is not None else answer

    async def _in_time(self, request: PendingRequest) -> Answer:
        """Ask within the bundle's timeout; raises RequestTimeout after it, InternalError for the unforeseen."""
        limit = self.deployment.limits.request_timeout_s
        try:
            async with asyncio.timeout(limit + _GRACE_S):
                return await self._ask(request)
        except TimeoutError:
            raise RequestTimeout(f"No answer within {limit:g} s.", "Ask for less at once.") from None
        except MiiAzureError:
            raise
        except Exception as error:
            raise internal(error) from error

    async def _ask(self, request: PendingRequest) -> Answer:
        """Ask replicas until one answers; cancelled when the time is up."""
        while True:
            try:
                answer = await self._pool.submit(request)
                if not _is_unavailable(answer):
                    return answer
            except Lost as loss:
                self._note(request, loss)
            await asyncio.sleep(self._pool.pause_s)

    def _note(self, request: PendingRequest, loss: Lost) -> None:
        """Count a loss; raises ReplicaLost if the request itself must be what ends them."""
        if loss.ended:
            request.lost.append(loss.replica)
            logger.warning("A replica was lost with a request; it is asked of another: %s", loss.replica)
        if len(request.lost) >= self._pool.most_lost:
            raise ReplicaLost(
                f"{len(request.lost)} replicas ended while they held this request.", "Do not send it again as it is."
            )
        self._asked_again += 1

    def _resumable(self, request: PendingRequest, answer: Answer) -> Answer:
        async def again(loss: Lost) -> Answer:
            self._note(request, loss)
            return await self._in_time(request)

        stream = _Stream(answer, again)
        return Answer(answer.status, answer.headers, chunks=stream, close=stream.close)

    async def _end(self, left: float) -> None:
        await self._pool.drain(left)

    @property
    def _in_flight(self) -> int:
        return self._busy + self._streams


class _Stream(AsyncIterator[bytes]):
    """Stream of a replica, asked of another one if the first is lost before its first piece."""

    def __init__(self, answer: Answer, again: Callable[[Lost], Awaitable[Answer]]) -> None:
        self._answer = answer
        self._again = again
        self._sent = False

    async def __anext__(self) -> bytes:
        while isinstance(self._answer.chunks, AsyncIterator):
            try:
                piece: bytes = await anext(self._answer.chunks)
                self._sent = True
                return piece
            except Lost as loss:
                if self._sent:
                    raise ReplicaLost(
                        "The replica that streamed this answer is gone.", "Ask again; another one answers."
                    ) from loss
                self._answer = await self._again(loss)
        if self._sent:
            raise StopAsyncIteration
        self._sent = True
        return _event(self._answer.body)  # asked again, it is no stream but a refusal

    def close(self) -> None:
        """Cancel the stream: nobody listens any more."""
        self._answer.close()


def _event(body: bytes) -> bytes:
    return b"data: " + body + b"\n\n"


def _is_unavailable(answer: Answer) -> bool:
    """True if a replica refused because it is stopping or broken."""
    if answer.status != NotReady.http_status or answer.chunks is not None:
        return False
    return errors.error_from_body(answer.body, answer.status).code in _ELSEWHERE
