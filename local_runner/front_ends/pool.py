"""Front ends as the process that starts them sees them: watched, started again, told to reload and to drain."""

import asyncio
import contextlib
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from local_runner.bundle.script import ScoreScript
from local_runner.errors import PortInUse, RunnerFailed
from local_runner.front_ends.board import Board
from local_runner.front_ends.control import Control, Place
from local_runner.host.host import ScriptHost
from local_runner.protocol.errors import error_from_body

logger = logging.getLogger(__name__)

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 10.0
_STEADY_S = 60.0  # after running this long, the next exit counts as the first again
_RELOAD_S = 10.0
_ROUNDS = 3  # of the event loop: bytes arrive, a line is whole, its task goes on
#: A front end computes nothing: it needs no GPU, and no threads for products.
_ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


class EngineHost(ScriptHost):
    """Host of the engine's process; its requests are those of the front ends."""

    def __init__(self, bundle: Path, count: int, script: ScoreScript | None = None) -> None:
        self.board = Board.create(count)
        super().__init__(bundle, script)

    @property
    def _in_flight(self) -> int:
        return self.board.in_flight()


class FrontEndPool:
    """`count` front ends of a host, which `command` starts; the doors of a server, behind other processes."""

    def __init__(self, host: EngineHost, count: int, command: Sequence[str]) -> None:
        self._host = host
        self._command = command
        self._reserved: list[socket.socket] = []  # ports that only the front ends share
        self._each = [_Process(index, count, self) for index in range(count)]
        self.serving = False  # all are ready
        self._stopping = False

    async def open(self, address: str, http_port: int, grpc_port: int | None) -> tuple[int, int]:
        """Start the processes, and wait until each answers, not ready yet; return the ports, 0 where there is none."""
        self._reserved = [reserve(address, port) for port in (http_port, grpc_port) if port is not None]
        for each in self._each:
            each.start()
        await self._all(lambda each: each.up)
        return self._ports

    async def ready(self) -> None:
        """Wait until each takes requests; raises the error of one that cannot."""
        await self._all(lambda each: each.ready)
        self.serving = True
        for each in self._each:
            each.serve()
        await self._all(lambda each: each.serving)

    async def update(self) -> None:
        """Do nothing: each front end publishes its own readiness."""

    async def reload(self) -> None:
        """Have each read keys, certificates and settings again."""
        await asyncio.gather(*(each.reload() for each in self._each))

    async def stop(self, budget_s: float) -> None:
        """Have each accept no more; what is in flight has `budget_s` seconds."""
        self._stopping = True
        for reserved in self._reserved:
            reserved.close()
        for each in self._each:
            each.drain(budget_s)

    async def stopped(self, deadline: float) -> None:
        """Wait for their last answers, until the deadline by the monotonic clock, and end them."""
        await asyncio.gather(*(each.stopped(deadline) for each in self._each))

    async def _all(self, condition: Callable[["_Process"], bool]) -> None:
        while left := [each for each in self._each if not condition(each)]:
            for each in left:
                each.check()
            await asyncio.sleep(0.01)

    @property
    def stopping(self) -> bool:
        return self._stopping

    @property
    def host(self) -> EngineHost:
        return self._host

    @property
    def command(self) -> Sequence[str]:
        return self._command

    @property
    def _ports(self) -> tuple[int, int]:
        ports = [reserved.getsockname()[1] for reserved in self._reserved]
        return ports[0], ports[1] if len(ports) > 1 else 0

    def place(self, index: int, count: int, engine: int, control: int) -> Place:
        """Place of one front end, with its ends of two connections."""
        board = self._host.board.descriptor
        return Place(index, count, engine, control, board, *self._ports, self.serving)


class _Process:
    """One front end, started again whenever it ends."""

    def __init__(self, index: int, count: int, pool: FrontEndPool) -> None:
        self.up = self.ready = self.serving = False
        self.failure: Exception | None = None  # of one that cannot load though the engine is ready
        self._index, self._count, self._pool = index, count, pool
        self._control: Control | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._reloads: dict[int, asyncio.Future[None]] = {}
        self._abandoned = 0

    def start(self) -> None:
        """Start the process, and another whenever it ends before it is told to drain."""
        self._supervising = asyncio.create_task(self._supervise())

    def check(self) -> None:
        """Raise what keeps it from answering, if anything does."""
        if self.failure:
            raise self.failure
        if self._supervising.done():
            self._supervising.result()

    def serve(self) -> None:
        """Have it say that it is ready."""
        if self._control is not None:
            self._control.send(serve=True)

    def drain(self, budget_s: float) -> None:
        """Have it accept no more, and end once it has answered."""
        if self._control is not None:
            self._control.send(drain=budget_s)

    async def stopped(self, deadline: float) -> None:
        """Wait for its end, until the deadline, and enforce it."""
        await asyncio.wait({self._supervising}, timeout=max(1.0, deadline - time.monotonic()) + 1.0)
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def reload(self) -> None:
        """Have it read again what may have changed."""
        if self._control is None:  # one that is being started reads it anyway
            return
        number = max(self._reloads, default=0) + 1
        self._reloads[number] = done = asyncio.get_running_loop().create_future()
        self._control.send(reload=number)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_RELOAD_S):
                await done

    async def _supervise(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while True:
            began = time.monotonic()
            code = await self._run()
            if not self.up:
                ended = f"Front end {self._index} ended with exit code {code} before it answered."
                self.failure = RunnerFailed(ended, "The runner's log says more.")
            self.up = self.ready = self.serving = False
            self._control = None
            self._pool.host.board.clear(self._index)
            if self._pool.stopping:
                return
            logger.warning("Front end %d ended with exit code %d; it is started again.", self._index, code)
            if time.monotonic() - began > _STEADY_S:
                pause_s = _FIRST_PAUSE_S
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _run(self) -> int:
        """Run one process, until it ends; return its exit code."""
        (engine, its_engine), (own, its_own) = socket.socketpair(), socket.socketpair()
        with its_engine, its_own:
            place = self._pool.place(self._index, self._count, its_engine.fileno(), its_own.fileno())
            self._process = await asyncio.create_subprocess_exec(
                *self._pool.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=sys.stderr.fileno(),
                env={**os.environ, **_ENVIRONMENT, **place.environment()},
                pass_fds=place.descriptors,
                start_new_session=True,  # signals are for the first process, which then tells this one
            )
        self._pool.host.script.entry.attach(engine)
        self._control = control = await Control.over(own)
        listening = asyncio.create_task(self._listen(control))
        code = await self._process.wait()
        await listening  # to the end of what it said
        control.close()
        return code

    async def _listen(self, control: Control) -> None:
        metrics = self._pool.host.metrics
        while (message := await control.receive()) is not None:
            if "answered" in message:
                metrics.answered(*message["answered"])
            elif "first" in message:
                metrics.first_event(message["first"])
            elif "ask" in message:
                for _ in range(_ROUNDS):  # what the others have sent by now is read first
                    await asyncio.sleep(0)
                control.send(metrics=message["ask"], text=metrics.expose().decode())
            elif "reloaded" in message:
                self._reloaded(message)
            elif "failed" in message:
                self.failure = error_from_body(json.dumps(message["failed"]).encode(), 503)
                if self._pool.serving and self._process:  # another may be luckier
                    logger.error("Front end %d cannot load: %s", self._index, self.failure)
                    self._process.kill()
            elif "ready" in message and self._pool.serving:
                self.serve()
            self.up |= "up" in message
            self.ready |= "ready" in message
            self.serving |= "serving" in message

    def _reloaded(self, message: dict[str, Any]) -> None:
        if error := message.get("error"):
            logger.warning("Front end %d has not reloaded: %s", self._index, error)
        if (done := self._reloads.pop(message["reloaded"], None)) and not done.done():
            done.set_result(None)


def reserve(address: str, port: int) -> socket.socket:
    """Bind a port that only the front ends of this server may share; raises PortInUse or RunnerFailed."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with contextlib.closing(socket.socket(family)) as trial:  # alone: whoever else shares it is found
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind((address, port))
            trial.listen()
        reserved = socket.socket(family)
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserved.bind((address, port))
    except OSError as error:
        if port:
            raise PortInUse(f"Port {port} of {address} is in use.", "Choose another, or 0 for any free one.") from error
        raise RunnerFailed(f"{address} cannot be listened on: {error.strerror or error}.") from error
    return reserved
