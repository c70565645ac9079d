"""Hosts one scoring script for every protocol: its state, threads, admission and drain."""

import asyncio
import json
import logging
import os
import sys
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from local_runner.bundle.script import Answer, ScoreScript
from local_runner.flags import serving
from local_runner.host import callers, departures
from local_runner.host.adapter_policy import AdaptedHost
from local_runner.host.event_loop_streams import EventLoopStreams
from local_runner.host.reload import Tuning, set_level
from local_runner.host.thread_pool import ThreadPool, in_thread
from local_runner.protocol.errors import EventParser, body_of, error_from_body
from local_runner.telemetry import tracing
from local_runner.telemetry.metrics import Metrics
from scoring.errors import InternalError, MiiAzureError, NotReady, Overloaded
from scoring.host_api import AdapterChange, AdapterRef, Deployment, Event, Limits, encode

logger = logging.getLogger(__name__)
access = logging.getLogger("local_runner.requests")

# A request waits in run() on a thread of its own, so that the scoring queue, not the host, decides when it is full.
_MAX_THREADS = 1024
_LAST_THREADS = 4  # make the last events of streams, which is work and no waiting
# This many requests above the limit still reach the scoring script, which refuses them in its own words.
PAYLOAD_SLACK = 1 << 20
_FLUSH_S = 6.0  # slightly longer than exporting the remaining traces may take


class HostState(StrEnum):
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


class Host(AdaptedHost, ABC):
    """Interface that every protocol uses, wherever the model is; its methods run on the event loop.

    `code` is the bundle's code/; `copies` of the model share the requests.
    """

    def __init__(self, code: Path, copies: int = 1) -> None:
        self.code = code
        self._copies = copies
        super().__init__(_named(Deployment.read(code / "deployment.json")))
        self.state = HostState.LOADING
        limits = self.deployment.limits
        self.max_body = limits.max_payload_bytes + PAYLOAD_SLACK
        self._planned, self._tuning = limits, Tuning()
        self._usual_level = logging.getLogger().level
        self._slots = slots_of(limits) * self._copies
        self._by_key = callers.told_apart()
        self._streams = 0  # streamed answers that have not ended
        self._told, self._started = self.state, time.monotonic()
        self._tracing = tracing.of_environment(self.deployment.name)
        self.metrics = Metrics(self.statistics)
        self.metrics.in_flight.set_function(lambda: self._in_flight)

    @abstractmethod
    async def load(self) -> None:
        """Make the host ready; on failure, raise the cause and leave the state at FAILED."""

    @abstractmethod
    def statistics(self) -> dict[str, Any]:
        """Phase, counts, times and queue; draining and failed are the host's own phases."""

    @property
    @abstractmethod
    def ready(self) -> bool:
        """True if a request sent now would be scored."""

    @property
    @abstractmethod
    def lost(self) -> bool:
        """True if only a new process can score again."""

    @abstractmethod
    async def _score(self, raw: str, headers: Mapping[str, str]) -> Answer:
        """Answer one request; raises MiiAzureError and its subclasses."""

    @abstractmethod
    def chunks(self, answer: Answer) -> AsyncGenerator[bytes, None]:
        """Yield the pieces of a streamed answer; closing the generator stops the work on it."""

    async def events(self, answer: Answer) -> AsyncGenerator[list[Event], None]:
        """Yield the events of a streamed answer, those that come together in one list; raises an error among them."""
        parser = EventParser()
        async with aclosing(self.chunks(answer)) as chunks:
            async for chunk in chunks:
                for text in parser.feed(chunk):
                    yield [json.loads(text)]

    async def exposed(self) -> bytes:
        """Metrics in Prometheus' text format."""
        return self.metrics.expose()

    @abstractmethod
    async def _end(self, left: float) -> None:
        """Finish accepted work within `left` seconds."""

    @property
    @abstractmethod
    def _in_flight(self) -> int:
        """Requests and streams that have not ended."""

    def check(self, tuning: Tuning) -> None:  # a host that can change every setting needs nothing else
        """Raise RunnerFailed if a setting cannot change in this host."""

    async def tune(self, tuning: Tuning) -> None:
        """Apply new settings to later requests; before the model is loaded they wait for it."""
        self._tuning = tuning
        set_level(tuning.log_level, self._usual_level)
        limits = replace(self._planned, **tuning.limits)
        self._deployment = replace(self.deployment, limits=limits)
        self._slots = slots_of(limits) * self._copies

    def change(self, state: HostState) -> None:
        """Move to another state."""
        self.state = self._told = state
        self._started = time.monotonic()

    @property
    def condition(self) -> HostState:
        """State as reported: a host that cannot score is not reported ready, one that never will again is failed."""
        if self.state is not HostState.READY or self.ready:
            return self.state
        return HostState.FAILED if self.lost else HostState.LOADING

    def own_phase(self) -> dict[str, Any]:
        """Condition as a phase, and the time since when it has been reported."""
        if (condition := self.condition) is not self._told:
            self._told, self._started = condition, time.monotonic()
        return {"phase": condition.value, "phase_seconds": round(time.monotonic() - self._started, 3)}

    def unready(self) -> NotReady:
        """Error that explains why the host is not ready."""
        if self.state is HostState.LOADING:
            told = self.statistics()
            phase, seconds = told["phase"], told["phase_seconds"]
            return NotReady(f"The model is loading ({phase}, {seconds:.0f} s so far).", "Ask again shortly.")
        if self.state is HostState.DRAINING:
            return NotReady("This runner is stopping and takes no more work.")
        if lost := self.statistics().get("lost"):
            return NotReady(f"The model can answer no more: {lost}.", "The server has to be started again.")
        return NotReady("The scoring engine is not ready.", "See the runner's log.")

    async def score(self, raw: str, headers: Mapping[str, str]) -> Answer:
        """Answer one request; raises NotReady, Overloaded, or InternalError where the script itself broke."""
        began = time.perf_counter()
        code = 499  # the client went away
        trace = self._tracing.begin("score", headers, request_bytes=len(raw)) if self._tracing else None
        try:
            answer = await self._score(raw, headers)
            code = answer.status
            if trace is not None:
                answer, trace = trace.follow(answer), None
            return answer
        except MiiAzureError as error:
            code = error.http_status
            raise
        finally:
            seconds = time.perf_counter() - began
            if trace is not None:
                trace.end(code)
            self.metrics.answered(code, seconds)
            access.info("answered", extra={"code": code, "ms": round(seconds * 1e3, 2), "bytes": len(raw)})

    async def finish(self, budget_s: float) -> int:
        """Accept no more work, finish what is in flight and queued; return the number of requests abandoned."""
        self.change(HostState.DRAINING)
        deadline = time.monotonic() + budget_s
        while self._in_flight and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        abandoned = self._in_flight
        await self._end(max(0.0, deadline - time.monotonic()))
        if self._tracing:
            await asyncio.wait([asyncio.wrap_future(in_thread(self._tracing.close))], timeout=_FLUSH_S)
        return abandoned


def _named(deployment: Deployment) -> Deployment:
    """Add the names of this runner's flag to those by which requests may call the model."""
    told = serving.SERVED_NAME.read(os.environ) or ""
    return replace(deployment, served_names=(*deployment.served_names, *told.split(","))) if told else deployment


class ScriptHost(Host):
    """Host of the one scoring script of this process, in worker threads."""

    def __init__(self, bundle: Path, script: ScoreScript | None = None) -> None:
        self.script = script or ScoreScript(bundle)
        super().__init__(self.script.code)
        self._workers = ThreadPool(_MAX_THREADS, "score", self._counted)
        self._pullers = ThreadPool(_MAX_THREADS, "stream", self._counted)  # for pieces of a script's own streams
        last = ThreadPool(_LAST_THREADS, "answer")
        self._listening = EventLoopStreams(last.submit, self._counted)

    async def load(self) -> None:
        """Run init() on a thread of its own; on failure, raise its error and leave the state at FAILED."""
        try:
            await asyncio.wrap_future(in_thread(self._init))
            if self.state is HostState.LOADING:
                await self.tune(self._tuning)
                await self.follow_adapters(self._tuning.adapters)
        except MiiAzureError:
            self.change(HostState.FAILED)
            raise
        if self.state is HostState.LOADING:
            await self._may_be_ready()
            self.change(HostState.READY)

    def _init(self) -> None:
        policy = self.adapter_policy
        if policy.root is not None:
            self.script.entry.reserve_adapters(policy.most, policy.rank)
        self.script.init()

    def adapters(self) -> tuple[AdapterRef, ...] | None:
        entry: Any = sys.modules.get("scoring.entry")  # importing it here would run on the event loop
        now: tuple[AdapterRef, ...] | None = entry.adapters() if hasattr(entry, "adapters") else None
        return now

    async def change_adapters(self, change: AdapterChange) -> None:
        if self.adapter_policy.root is None:
            await super().change_adapters(change)
        if not self.script.loaded:
            raise self.unready()
        await asyncio.wrap_future(in_thread(lambda: self.script.entry.change_adapters(change)))

    async def _may_be_ready(self) -> None:
        """Wait for what else has to be ready before this host says so."""

    async def tune(self, tuning: Tuning) -> None:
        """Apply new settings to later requests; before the model is loaded they wait for it."""
        await super().tune(tuning)
        limits, entry = self.deployment.limits, sys.modules.get("scoring.entry")
        if entry is not None and hasattr(entry, "change"):
            entry.change(queue_size=limits.queue_size, request_timeout_s=limits.request_timeout_s)

    def statistics(self) -> dict[str, Any]:
        """Statistics of the scoring package; draining and failed are the host's own phases."""
        own = self.own_phase()
        failed = own["phase"] in (HostState.DRAINING, HostState.FAILED)
        if own["phase"] == HostState.LOADING:
            own["phase"] = "importing"
        entry = sys.modules.get("scoring.entry")  # importing it here would run on the event loop
        told: dict[str, Any] = entry.statistics() if entry is not None and hasattr(entry, "statistics") else own
        return {**told, **own} if failed else told

    @property
    def ready(self) -> bool:
        """True if a request sent now would be scored."""
        return self.state is HostState.READY and bool(self.script.entry.ready())

    @property
    def lost(self) -> bool:
        """True if only a new process can score again: the engine, or one of its ranks, died after it was ready."""
        return self.state is HostState.READY and not self.script.entry.ready()

    async def _score(self, raw: str, headers: Mapping[str, str]) -> Answer:
        if not self._takes():
            raise self.unready()
        if (busy := self.busy + self._busy_elsewhere()) >= self._slots:
            raise Overloaded(f"{busy} requests are in flight already.", "Ask again later.")
        if self._by_key:
            callers.tell(headers)
        try:
            notice = departures.expect()
            call = self._workers.submit(self.script.run, raw, headers, abandoned=_discard)
            call.add_done_callback(lambda call: notice.leave() if call.cancelled() else None)
            with departures.followed(call):
                answer: Answer = await call
            return answer
        except MiiAzureError:
            raise
        except Exception as error:
            raise internal(error) from error

    async def chunks(self, answer: Answer) -> AsyncGenerator[bytes, None]:
        """Yield the pieces of a streamed answer; closing this stops the work on it."""
        try:
            async with aclosing(self._followed(answer)) as parts:
                async for part in parts:
                    yield part if isinstance(part, bytes) else b"".join(map(encode, part))
        except Exception as error:
            yield b"data: " + body_of(internal(error)) + b"\n\n"

    async def events(self, answer: Answer) -> AsyncGenerator[list[Event], None]:
        """Yield the events of a streamed answer, those that come together in one list; raises an error among them."""
        if answer.events is None:
            async for parsed in super().events(answer):
                yield parsed
            return
        async with aclosing(self._followed(answer)) as parts:
            async for events in parts:
                if "error" in events[-1]:
                    raise error_from_body(encode(events[-1]).removeprefix(b"data: "), 500)
                yield events

    async def _followed(self, answer: Answer) -> AsyncGenerator[Any, None]:
        """Yield the parts of a streamed answer, lists of events or bytes, counted and timed; closing this closes it."""
        began: float | None = time.perf_counter()
        self._streams += 1
        self._counted()
        parts = self._pulled(answer) if answer.events is None else self._listening.read(answer.events)
        try:
            async with aclosing(parts):
                async for part in parts:
                    if began is not None:
                        self.metrics.first_event(time.perf_counter() - began)
                        answer.began()
                        began = None
                    yield part
        finally:
            self._streams -= 1
            self._counted()
            if answer.events is not None:
                answer.close()

    async def _pulled(self, answer: Answer) -> AsyncGenerator[bytes, None]:
        """Yield the pieces of a script's own iterator, each waited for by a thread."""
        pending: asyncio.Future[Any] | None = None
        try:
            while True:
                # A generator cannot be closed while a thread is inside it.
                pending = self._pullers.submit(next, answer.chunks, None, abandoned=lambda _: answer.close())
                chunk = await pending
                if chunk is None:
                    return
                yield chunk
        finally:
            if pending is not None and not pending.cancelled():
                answer.close()

    async def _end(self, left: float) -> None:
        """Let the engine finish its accepted work."""
        if self.script.loaded:
            draining = asyncio.wrap_future(in_thread(lambda: self.script.entry.drain(left)))
            done, _ = await asyncio.wait([draining], timeout=left + 1)
            for future in done:
                if error := future.exception():
                    logger.error("the engine did not drain", exc_info=error)

    @property
    def busy(self) -> int:
        """Requests that wait for the model."""
        return self._workers.busy + self._pullers.busy + self._listening.waiting

    @property
    def _in_flight(self) -> int:
        return self._workers.busy + self._streams

    def _takes(self) -> bool:
        """True if a request may be scored."""
        return self.state is HostState.READY

    def _counted(self) -> None:
        """Called whenever one of these counts has changed."""

    def _busy_elsewhere(self) -> int:
        """Requests that wait for the same model in other processes."""
        return 0


def slots_of(limits: Limits) -> int:
    """Requests that one copy of the model takes at once."""
    return min(limits.queue_size + limits.max_batch_size, _MAX_THREADS)


def _discard(answer: Answer | None) -> None:
    """Close an answer whose client has gone."""
    if answer is not None:
        answer.close()


def internal(error: Exception) -> InternalError:
    """Error shown to a client for an unforeseen failure: an id, under which the log has the details."""
    number = uuid.uuid4().hex[:12]
    logger.error("request %s failed", number, exc_info=error)
    return InternalError(
        f"The request failed here, not because of what it asks (id {number}).", "The runner's log has the details."
    )
