"""A front end: a process that answers requests, and has the model in another.

The process that started it tells it when to reload and to drain, and is told what is counted. It ends with that one.
"""

import asyncio
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol

from local_runner.bundle.script import ScoreScript
from local_runner.front_ends.board import Board
from local_runner.front_ends.control import Control, Place
from local_runner.host.host import HostState, ScriptHost
from local_runner.host.reload import Tuning
from local_runner.telemetry.metrics import Metrics
from scoring.errors import MiiAzureError, NotReady

_ORPHANED = 1  # exit code


class OpenDoors(Protocol):
    """Servers of one process."""

    async def update(self) -> None:
        """Publish the host's readiness now."""

    async def stop(self, budget_s: float) -> None:
        """Accept no more; what is in flight has `budget_s` seconds."""

    async def stopped(self, deadline: float) -> None:
        """Wait for the last answers, until the deadline by the monotonic clock."""


class FrontEndScript(ScoreScript):
    """The bundle's score.py in a front end, whose engine is another process; that one has checked the weights."""

    def __init__(self, bundle: Path, code: Path, place: Place) -> None:
        super().__init__(bundle)
        self.code = code
        self._engine = socket.socket(fileno=place.engine)

    def init(self) -> None:
        """Import score.py and call its init(), which waits for the engine; raises LoadError."""
        model = self.bundle / "model"
        if model.is_dir():
            os.environ["AZUREML_MODEL_DIR"] = str(model)
        os.environ["AML_APP_ROOT"] = str(self.code)
        self.entry.become_front_end(self._engine)
        self.start()


class FrontEndHost(ScriptHost):
    """Host whose counts are its server's: they go to the process that started it, and admission looks at all."""

    def __init__(self, script: FrontEndScript, place: Place) -> None:
        self.board = Board(place.board, place.count, place.index)
        super().__init__(script.bundle, script)
        self.control: Control  # there before the first request
        self.all_ready = asyncio.Event()
        self._asked: dict[int, asyncio.Future[str]] = {}

    def connect(self, control: Control) -> None:
        """Count there, and ask there for metrics."""
        self.control = control
        self.metrics = _Counted(self.statistics, control)

    async def _may_be_ready(self) -> None:
        """Wait for the other front ends: a client that learns from one that it is ready may ask any of them."""
        self.control.send(ready=True)
        await self.all_ready.wait()

    def _takes(self) -> bool:
        return super()._takes() or (
            self.state is HostState.LOADING and self.script.loaded and self.script.entry.ready()
        )

    async def follow_adapters(self, listed: Mapping[str, str] | None) -> None:
        """Nothing: the engine's process follows the operator's list, and tells this one."""

    def told(self, number: int, text: str) -> None:
        """Take the metrics that were asked for."""
        if (asked := self._asked.pop(number, None)) and not asked.done():
            asked.set_result(text)

    async def exposed(self) -> bytes:
        """Metrics of the server, all its front ends together; raises NotReady if nobody tells them."""
        number = max(self._asked, default=0) + 1
        self._asked[number] = told = asyncio.get_running_loop().create_future()
        self.control.send(ask=number)
        try:
            async with asyncio.timeout(self.deployment.limits.request_timeout_s):
                text: str = await told
                return text.encode()
        except TimeoutError:
            raise NotReady("The engine's process does not tell its metrics.", "Ask again later.") from None

    def _counted(self) -> None:
        self.board.write(self.busy, self._in_flight)

    def _busy_elsewhere(self) -> int:
        return self.board.busy_elsewhere()


class _Counted(Metrics):
    """Metrics that the server's first process keeps."""

    def __init__(self, statistics: Any, control: Control) -> None:
        super().__init__(statistics)
        self._control = control

    def answered(self, code: int, seconds: float) -> None:
        """Count a request."""
        self._control.send(answered=[code, seconds])

    def first_event(self, seconds: float) -> None:
        """Record the time to a stream's first event."""
        self._control.send(first=seconds)


@dataclass
class FrontEnd:
    """Life of a front end; `reload` reads keys and certificates again and returns the settings that apply."""

    host: FrontEndHost
    doors: OpenDoors
    reload: Callable[[], Tuning]
    place: Place

    async def run(self, opened: Awaitable[Any]) -> int:
        """Answer until told to drain; return the exit code."""
        for number in (signal.SIGHUP, signal.SIGINT):  # those are for the process that started this one
            signal.signal(number, signal.SIG_IGN)
        control = await Control.over(socket.socket(fileno=self.place.control))
        self.host.connect(control)
        await self.host.tune(self.reload())
        self._drained = asyncio.Event()
        listening = asyncio.create_task(self._listen(control))
        self._loading = asyncio.create_task(self._load(control))
        if self.place.late:  # the others answer meanwhile
            await asyncio.wait({self._loading})
        await opened
        control.send(up=True)
        await self._drained.wait()
        await control.flushed()
        listening.cancel()
        return 0

    async def _listen(self, control: Control) -> None:
        while (message := await control.receive()) is not None:
            if "metrics" in message:
                self.host.told(message["metrics"], message["text"])
            elif "serve" in message:
                self.host.all_ready.set()
            elif "reload" in message:
                await self._reload(control, message["reload"])
            elif "drain" in message:
                self._draining = asyncio.create_task(self._drain(control, message["drain"]))
        _orphaned()

    async def _load(self, control: Control) -> None:
        try:
            await self.host.load()
        except MiiAzureError as error:
            control.send(failed=error.to_dict())
            return
        await self.doors.update()
        control.send(serving=True)

    async def _reload(self, control: Control, number: int) -> None:
        try:
            await self.host.tune(self.reload())
        except MiiAzureError as error:  # the files have changed again since the first process read them
            control.send(reloaded=number, error=str(error))
        else:
            control.send(reloaded=number)

    async def _drain(self, control: Control, budget_s: float) -> None:
        self._loading.cancel()
        deadline = time.monotonic() + budget_s
        if self.host.state is not HostState.FAILED:
            self.host.change(HostState.DRAINING)
        await self.doors.stop(budget_s)
        abandoned = await self.host.finish(budget_s)
        await self.doors.stopped(deadline)
        control.send(drained=abandoned)
        self._drained.set()


def _orphaned() -> NoReturn:
    """End at once: the engine is gone, and nobody waits for a drain."""
    os._exit(_ORPHANED)
