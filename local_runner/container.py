"""`python -m local_runner.container`: the HTTP host inside the container of a bundle made with `--server http`.

It runs from the bundle's code/, which carries this package beside score.py; Azure ML mounts that folder alone, and the
model at AZUREML_MODEL_DIR, so there is no manifest to check here. Environment variables configure it:
MII_AZURE_HTTP_PORT (5001), MII_AZURE_HOST (0.0.0.0), MII_AZURE_DRAIN_SECONDS (30), MII_AZURE_LOG_FORMAT (json),
MII_AZURE_FRONT_ENDS (by GPU and cores).
The endpoint handles keys and TLS in front of the container; setting the runner's variables for them is an error.
Exit codes: 0 stopped by a signal, every request answered; 1 some abandoned; 3 a model that does not load; 4 the port.
"""

import asyncio
import logging
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import uvloop

from local_runner.bundle.script import ScoreScript
from local_runner.flags import serving
from local_runner.front_ends.control import Place
from local_runner.front_ends.front_end import FrontEnd, FrontEndHost, FrontEndScript
from local_runner.front_ends.number import number_of
from local_runner.front_ends.pool import EngineHost, FrontEndPool
from local_runner.host.host import Host, HostState, ScriptHost
from local_runner.host.reload import Tuning
from local_runner.http import app
from local_runner.http import server as http_server
from local_runner.http.server import HttpDoor
from local_runner.process import leash, ready_file
from local_runner.telemetry import logs, terminal
from scoring.errors import LoadError, MiiAzureError

logger = logging.getLogger(__name__)

CODE = Path(__file__).resolve().parent.parent
EXIT_ABANDONED = 1


@dataclass(frozen=True)
class ContainerSettings:
    """Settings from the environment; a port of 0 picks a free one."""

    host: str
    port: int
    drain_s: float
    log_format: str
    ready_file: Path | None
    front_ends: int | None  # None: as number_of decides

    @classmethod
    def read(cls) -> "ContainerSettings":
        """Read the settings from the environment; raises LoadError for an invalid value."""
        if told := [flag.twin for flag in serving.ADAPTERS if flag.twin in os.environ]:
            raise LoadError(
                f"The container's host loads no adapters while it serves, and {told[0]} is set.",
                "Unset it: a bundle's own adapters are served. `mii-azure serve` loads others.",
            )
        if guards := [flag.twin for flag in serving.KEYS if flag.twin in os.environ]:
            raise LoadError(
                f"The container's host has no keys or TLS of its own, and {guards[0]} is set.",
                "Unset it: the endpoint before the container asks for keys. `mii-azure serve` has both.",
            )
        try:
            serving.SERVED_NAME.read(os.environ)  # by the host, and only here with a sentence
            return cls(
                serving.HOST.read(os.environ, default="0.0.0.0"),  # noqa: S104
                serving.HTTP_PORT.read(os.environ),
                serving.DRAIN_SECONDS.read(os.environ),
                serving.LOG_FORMAT.read(os.environ, default="json"),
                serving.READY_FILE.read(os.environ),
                serving.FRONT_ENDS.read(os.environ),
            )
        except ValueError as error:
            raise LoadError(f"The environment of the container is wrong: {error}.", "See deployment.yml.") from error


class Mounted(ScoreScript):
    """The score.py beside this package, where Azure ML mounts it."""

    def __init__(self, code: Path) -> None:
        super().__init__(code.parent)
        self.code = code

    def init(self) -> None:
        """Import score.py and call its init(); raises LoadError."""
        self.start()


class _Doors:
    """HTTP alone, in this process."""

    def __init__(self, host: Host, drain_s: float, shared: bool = False) -> None:
        self._shared = shared
        self._http = HttpDoor(logs.Middleware(app.build(host)), drain_s)

    async def open(self, address: str, port: int, grpc_port: int | None = None) -> tuple[int, int]:
        """Begin to answer; return the port, and none of gRPC."""
        listener = http_server.listen(address, port, self._shared)
        self._http.open(listener)
        return listener.getsockname()[1], 0

    async def ready(self) -> None:
        """Do nothing: this door is as ready as its host."""

    async def update(self) -> None:
        """Do nothing: each request looks at the readiness."""

    async def stop(self, budget_s: float) -> None:
        """Accept no more."""
        self._http.stop()

    async def stopped(self, deadline: float) -> None:
        """Wait for the last answers, until the deadline by the monotonic clock."""
        await self._http.stopped(deadline)


async def serve(settings: ContainerSettings) -> int:
    """Answer probes at once, load, score until a signal, drain; return the exit code. Raises what prevents serving."""
    if place := Place.taken():
        return await _front_end(settings, place)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    host, doors = _parts(settings)
    port, _ = await doors.open(settings.host, settings.port, None)
    _announce(settings, host.state, port)

    async def load() -> None:
        await host.load()
        await doors.ready()

    loading, stopping = asyncio.create_task(load()), asyncio.create_task(stop.wait())
    await asyncio.wait({loading, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if loading.done():
        loading.result()
        _announce(settings, host.state, port)
    await stopping
    return await _drain(host, doors, settings.drain_s)


def _parts(settings: ContainerSettings) -> tuple[Host, _Doors | FrontEndPool]:
    """The host of this process, and where its requests come from."""
    if count := number_of(settings.front_ends, CODE):
        engine = EngineHost(CODE.parent, count, Mounted(CODE))
        return engine, FrontEndPool(engine, count, (sys.executable, "-m", "local_runner.container"))
    host = ScriptHost(CODE.parent, Mounted(CODE))
    return host, _Doors(host, settings.drain_s)


async def _front_end(settings: ContainerSettings, place: Place) -> int:
    """Answer requests beside other front ends of this container, until told to drain; return the exit code."""
    host = FrontEndHost(FrontEndScript(CODE.parent, CODE, place), place)
    doors = _Doors(host, settings.drain_s, shared=True)
    opened = doors.open(settings.host, place.http_port)
    return await FrontEnd(host, doors, Tuning, place).run(opened)


async def _drain(host: Host, doors: _Doors | FrontEndPool, budget_s: float) -> int:
    deadline = time.monotonic() + budget_s
    await doors.stop(budget_s)
    abandoned = await host.finish(budget_s)
    await doors.stopped(deadline)
    if abandoned:
        terminal.say(f"{abandoned} requests were abandoned after {budget_s:g} s of draining.")
    return EXIT_ABANDONED if abandoned else 0


def _announce(settings: ContainerSettings, state: HostState, port: int) -> None:
    ready_file.write(settings.ready_file, state, http_port=port)
    logger.warning("%s: HTTP on %s:%d", state, settings.host, port)


def main() -> NoReturn:
    """Serve, then end the process."""
    leash.hold_if_asked()
    try:
        settings = ContainerSettings.read()
        logs.set_up(settings.log_format, verbose=False)
        code = uvloop.run(serve(settings))
    except MiiAzureError as error:
        logger.debug("why:", exc_info=True)
        terminal.say(f"error [{error.code}]: {error}")
        file = serving.READY_FILE.told(os.environ)
        ready_file.write(Path(file) if file else None, "failed", **error.to_dict(), exit_code=error.exit_code)
        code = error.exit_code
    sys.stdout.flush()
    sys.stderr.flush()
    # The scoring script may own threads that never end; they must not keep a stopped container alive.
    os._exit(code)


if __name__ == "__main__":
    main()
