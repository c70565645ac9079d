"""Replicas as their front sees them: one process each, watched, restarted with back-off, and sent requests."""

import asyncio
import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Any

from local_runner.bundle.script import Answer
from local_runner.errors import RunnerFailed
from local_runner.process import ready_file
from local_runner.process.launch import failure
from local_runner.protocol.errors import error_from_body
from local_runner.replicas.local.framing import GONE, Connection, connect, frame, head
from local_runner.replicas.local.worker import FAILED
from local_runner.replicas.pool import Lost
from scoring.errors import MiiAzureError
from scoring.host_api import AdapterRef, WantedAdapter

logger = logging.getLogger(__name__)

_LOOK_S = 0.25
_LOOK_STARTING_S = 0.05
_SILENCE_S = 10.0  # a busy event loop answers late; one that hangs does not answer
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0
_STEADY_S = 60.0  # after being ready this long, the next exit counts as the first again
_KILL_S = 1.0

#: Adapters that a replica is to serve.
Wanted = tuple[WantedAdapter, ...]


class Condition(StrEnum):
    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    STOPPED = "stopped"


class ReplicaProcess:
    """Process that holds the model; everything here runs on the event loop."""

    def __init__(
        self, index: int, bundle: Path, folder: Path, environment: dict[str, str], arguments: list[str]
    ) -> None:
        self.index = index
        self.condition = Condition.STARTING
        self.failure: Exception | None = None  # cause of its last exit, until it is ready again
        self.in_flight = 0
        self.restarts = 0
        self.statistics: dict[str, Any] = {}
        self.process: asyncio.subprocess.Process | None = None
        self._bundle = bundle
        self._socket = folder / str(index)
        self._environment = environment
        self._arguments = arguments
        self._idle: list[Connection] = []
        self._stopping = False
        self._pause_s = _FIRST_PAUSE_S
        self._ready_since = 0.0
        self._tuning: dict[str, Any] = {}
        self._adapters: Wanted | None = None  # to be served by every process that is started later; None: the bundle's
        self.life = 0  # processes that have ended
        self._supervising: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the process, and restart it whenever it ends, until `stop`."""
        self._supervising = asyncio.create_task(self._supervise())

    async def stop(self, left_s: float) -> None:
        """End the process by SIGTERM, and by SIGKILL if it takes longer than `left_s`."""
        self._stopping = True
        if self._supervising:
            self._supervising.cancel()
            await asyncio.gather(self._supervising, return_exceptions=True)
        process, self.condition = self.process, Condition.STOPPED
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), max(_KILL_S, left_s))
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def tune(self, tuning: dict[str, Any]) -> None:
        """Pass settings on, also to every process that is started later."""
        self._tuning = tuning
        if self.condition is Condition.READY:
            with contextlib.suppress(*GONE):
                await self._tune()  # without adapters: a change of theirs may be under way, and this comes after it

    async def keep_adapters(self, wanted: Wanted, told: bool) -> None:
        """Have every process that is started later serve these adapters, and this one if it was not told of them."""
        self._adapters = wanted
        if self.condition is Condition.READY and not told:
            await self.must_become(wanted)

    async def must_become(self, wanted: Wanted) -> None:
        """Serve what the others serve; a process that cannot is ended, and started again with it."""
        process = self.process
        try:
            await self.become(wanted)
        except MiiAzureError as error:
            self._end_other(process, error)
        except GONE:
            return

    async def become(self, wanted: Wanted) -> list[AdapterRef]:
        """Serve these adapters and no others; raises what the replica says, or that it is gone (GONE)."""
        facts = await self._asked({"op": "adapters", "wanted": [asdict(each) for each in wanted]})
        if "error" in facts:
            raise error_from_body(json.dumps(facts).encode(), facts["status"])
        return [AdapterRef(**each) for each in facts["adapters"]]

    async def _tune(self) -> None:
        await self._asked({"op": "tune", "tuning": self._tuning})

    async def _pass_on(self) -> None:
        await self._tune()
        told: Wanted | None = None
        while self._adapters is not None and told is not self._adapters:  # they may change meanwhile
            told = self._adapters
            await self.become(told)

    async def _asked(self, what: dict[str, Any]) -> dict[str, Any]:
        """Ask the process something without a body, and return the head of its answer."""
        connection = await connect(str(self._socket))
        try:
            await connection.send(head(what), frame(b""))
            return await connection.receive_head()
        finally:
            connection.close()

    def facts(self) -> dict[str, Any]:
        """State of the replica for metadata and readiness."""
        statistics = self.statistics if self.condition in (Condition.STARTING, Condition.READY) else {}
        return {
            "replica": self.index,
            "state": self.condition.value,
            "phase": statistics.get(
                "phase", "importing" if self.condition is Condition.STARTING else self.condition.value
            ),
            "seconds": statistics.get("phase_seconds", 0.0),
            "in_flight": self.in_flight,
            "restarts": self.restarts,
            "pid": self.process.pid if self.process else 0,
        }

    async def ask(self, headers: dict[str, str], raw: str) -> Answer:
        """Answer one request, whole or as a stream; raises Lost if the process is gone, as does the stream."""
        self.in_flight += 1
        connection: Connection | None = None
        done = False
        try:
            connection = self._idle.pop() if self._idle else await self._connect()
            await connection.send(head({"op": "score", "headers": headers}), frame(raw.encode()))
            facts = await connection.receive_head()
            if facts["stream"]:
                stream = Stream(self, connection)
                done = True
                return Answer(facts["status"], facts["headers"], chunks=stream, close=stream.close)
            answer = Answer(facts["status"], facts["headers"], await connection.receive())
            done = True
            self.give_back(connection)
            return answer
        except GONE as error:
            raise Lost(str(self.index)) from error
        finally:
            if not done:
                self.let_go(connection)

    def give_back(self, connection: Connection) -> None:
        """Take back the connection of a finished request, for the next one, unless its process has ended since."""
        self.in_flight -= 1
        if connection.life == self.life:
            self._idle.append(connection)
        else:
            connection.close()

    def let_go(self, connection: Connection | None) -> None:
        """Drop the connection of a request that ended or was given up; the replica cancels any work left for it."""
        self.in_flight -= 1
        if connection is not None:
            connection.close()

    async def _connect(self) -> Connection:
        life = self.life
        connection = await connect(str(self._socket))
        connection.life = life
        return connection

    async def _supervise(self) -> None:
        while not self._stopping:
            await self._run()
            self.condition = Condition.RESTARTING
            self._drop_connections()
            if self._ready_since and time.monotonic() - self._ready_since > _STEADY_S:
                self._pause_s = _FIRST_PAUSE_S
            self._ready_since = 0.0
            logger.warning("%s It is started again in %g s.", self.failure, self._pause_s)
            await asyncio.sleep(self._pause_s)
            self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
            self.restarts += 1

    async def _run(self) -> None:
        """Run one process, until it ends."""
        for path in (self._socket, self._failed):
            path.unlink(missing_ok=True)
        self.statistics, self.condition = {}, Condition.STARTING
        command = [sys.executable, "-m", "local_runner.replicas.local.worker", str(self._bundle), str(self._socket)]
        self.process = await asyncio.create_subprocess_exec(
            *command,
            *self._arguments,
            stdin=asyncio.subprocess.PIPE,  # closes with this process, however that ends
            stdout=sys.stderr.fileno(),
            env={**os.environ, **self._environment},
            start_new_session=True,  # Ctrl-C is for the front, which then drains
        )
        looking = asyncio.create_task(self._look(self.process))
        try:
            code = await self.process.wait()
        finally:
            looking.cancel()
        left = ready_file.read(self._failed)
        ended = RunnerFailed(f"Replica {self.index} ended with exit code {code}.", "The runner's log says more.")
        self.failure = failure(left) if left else ended

    @property
    def _failed(self) -> Path:
        return self._socket.with_name(self._socket.name + FAILED)

    async def _look(self, process: asyncio.subprocess.Process) -> None:
        """Keep the reported state true; end a process that was ready and no longer answers, or never will."""
        connection: Connection | None = None
        while True:
            starting = self.condition is Condition.STARTING
            await asyncio.sleep(_LOOK_STARTING_S if starting else _LOOK_S)
            try:
                connection = connection or await connect(str(self._socket))
                async with asyncio.timeout(None if starting else _SILENCE_S):
                    await connection.send(head({"op": "statistics"}), frame(b""))
                    reply = await connection.receive_head()
                    await connection.receive()
                    if reply["ready"] and starting:
                        await self._pass_on()
            except TimeoutError:
                reply = {"ready": False, "statistics": self.statistics}
                logger.error("Replica %d has not answered for %g s.", self.index, _SILENCE_S)
            except MiiAzureError as error:  # it cannot have what the others serve
                self._end_other(process, error)
                return
            except GONE:  # not there yet, or no longer there
                connection = None
                continue
            self.statistics = reply["statistics"]
            if reply["ready"] and starting:
                self.condition, self.failure, self._ready_since = Condition.READY, None, time.monotonic()
            elif not reply["ready"] and not starting:
                self.condition = Condition.RESTARTING
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                return

    def _end_other(self, process: asyncio.subprocess.Process | None, error: MiiAzureError) -> None:
        """End a process that does not serve the adapters of the others."""
        logger.error("Replica %d cannot serve the adapters of the others: %s", self.index, error)
        with contextlib.suppress(ProcessLookupError):
            if process is not None:
                process.kill()

    def _drop_connections(self) -> None:
        self.life += 1
        for connection in self._idle:
            connection.close()
        self._idle.clear()


class Stream(AsyncIterator[bytes]):
    """Pieces that a replica streams; closing it cancels the work there."""

    def __init__(self, replica: ReplicaProcess, connection: Connection) -> None:
        self._replica = replica
        self._connection = connection
        self._ended = False

    async def __anext__(self) -> bytes:
        if self._ended:
            raise StopAsyncIteration
        try:
            piece = await self._connection.receive()
        except GONE as error:
            self.close()
            raise Lost(str(self._replica.index)) from error
        if not piece:
            self._ended = True
            self._replica.give_back(self._connection)
            raise StopAsyncIteration
        return piece

    def close(self) -> None:
        """Cancel the stream: nobody listens any more."""
        if not self._ended:
            self._ended = True
            self._replica.let_go(self._connection)
