"""Server process for one bundle: gRPC and HTTP on one event loop, loading behind open ports, draining on SIGTERM.

Import this only after `manifest.enter`: it imports `scoring`, which has to be the bundle's.
"""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import uvloop

from local_runner.access.security import Security, load
from local_runner.bundle import environment
from local_runner.doors import Doors
from local_runner.errors import RunnerFailed
from local_runner.front_ends.control import Place
from local_runner.front_ends.front_end import FrontEnd, FrontEndHost, FrontEndScript
from local_runner.front_ends.hint import hint
from local_runner.front_ends.pool import EngineHost, FrontEndPool
from local_runner.host import reload
from local_runner.host.adapter_policy import AdapterPolicy
from local_runner.host.host import Host, HostState, ScriptHost
from local_runner.process import ready_file
from local_runner.process.devices import gpus
from local_runner.process.hangup import Terminal
from local_runner.replicas.frontend import Frontend
from local_runner.replicas.local.options import ReplicaOptions
from local_runner.replicas.local.pool import LocalPool
from local_runner.replicas.ray import cluster
from local_runner.replicas.ray.options import RayOptions
from local_runner.replicas.ray.pool import RayPool
from local_runner.telemetry import terminal
from local_runner.telemetry.elapsed import elapsed
from scoring.errors import MiiAzureError
from scoring.host_api import cores

EXIT_ABANDONED = 1


@dataclass(frozen=True)
class ServerSettings:
    """Settings of a server; a port of 0 picks a free one."""

    bundle: Path
    host: str = "127.0.0.1"
    grpc_port: int = 50051
    http_port: int = 5001
    drain_s: float = 30.0
    ready_file: Path | None = None
    security: Security = field(default_factory=Security)
    replicas: ReplicaOptions | RayOptions | None = None  # None: one model, in this process
    settings_file: Path | None = None
    front_ends: int = 0  # processes that answer requests beside this one, which then has the engine alone
    command: Sequence[str] = ()  # starts a front end: the command of this process, which finds its place
    page: bool = True  # for browsers, at /
    cors: str = ""  # origins whose pages may call it
    elapsed: bool = True  # told on a terminal while the model is loaded


def serve(settings: ServerSettings) -> int:
    """Serve until a signal; return the exit code. Raises whatever prevents serving."""
    if place := Place.taken():
        return uvloop.run(_front_end(settings, place))
    if differing := environment.report(environment.differences(settings.bundle)):
        terminal.say(differing)
    if isinstance(settings.replicas, RayOptions):
        cluster.connect(settings.replicas.address)
    return uvloop.run(_Runner(settings).run())


class _Runner:
    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._terminal = Terminal()
        self._host, self._doors = _parts(settings)
        self._ports = (0, 0)

    async def run(self) -> int:
        """Bind, load, announce, wait for a signal, drain."""
        settings = self._settings
        self._stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal)
        await self._tune(reload.read_settings(settings.settings_file))
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._on_hangup)
        stopping = asyncio.create_task(self._stop.wait())
        opening = asyncio.create_task(self._open())
        await asyncio.wait({opening, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not opening.done():
            return 0  # nobody has been answered yet
        opening.result()
        await self._announce()
        loading = asyncio.create_task(self._load())
        with elapsed(self._phase, shown=settings.elapsed):
            await asyncio.wait({loading, stopping}, return_when=asyncio.FIRST_COMPLETED)
        try:
            if loading.done():
                loading.result()
                await self._announce()
            await self._stop.wait()
        except MiiAzureError:
            await self._close(0)
            raise
        code = await self._close(self._drain_s)
        if settings.ready_file:
            settings.ready_file.unlink(missing_ok=True)
        return code

    async def _open(self) -> None:
        """Bind both ports and answer on them, not ready yet. Raises PortInUse or RunnerFailed."""
        settings = self._settings
        http_port, grpc_port = await self._doors.open(settings.host, settings.http_port, settings.grpc_port)
        self._ports = (grpc_port, http_port)

    def _phase(self) -> str:
        """Phase of the start: importing, loading, optimising, warming; of replicas that they start."""
        return str(self._host.statistics().get("phase", "starting"))

    async def _load(self) -> None:
        await self._host.load()
        await self._doors.ready()

    async def _close(self, budget_s: float) -> int:
        """Stop accepting, finish what is in flight within the budget; return the exit code."""
        deadline = time.monotonic() + budget_s
        if self._host.state is not HostState.FAILED:
            self._host.change(HostState.DRAINING)
        await self._doors.stop(budget_s)
        abandoned = await self._host.finish(budget_s)
        await self._doors.stopped(deadline)
        if abandoned:
            terminal.say(f"{abandoned} requests were abandoned after {budget_s:g} s of draining.")
        return EXIT_ABANDONED if abandoned else 0

    def _on_hangup(self) -> None:
        self._hanging_up = asyncio.create_task(self._hang_up())

    async def _hang_up(self) -> None:
        """Reload what an operator may have changed; but stop if the terminal of this process was closed."""
        if not self._terminal.gone():
            await self._reload()
        if await self._terminal.goes():
            self._terminal.leave()
            self._stop.set()

    async def _reload(self) -> None:
        """Reload keys, certificates and settings; if one is wrong, all stay as they were."""
        security = self._settings.security
        try:
            tuned = reload.read_settings(self._settings.settings_file)
            self._host.check(tuned)
            load(security.files)  # what is wrong in them is told before an adapter changes
            await self._host.follow_adapters(tuned.adapters)
            security.reload()
        except MiiAzureError as error:
            terminal.say(f"not reloaded: {error}")
            return
        await self._tune(tuned)
        await self._doors.reload()
        parts = [part for part in (security.summary(), tuned.told()) if part]
        terminal.say("reloaded: " + (", ".join(parts) or "the settings of the command line"))

    async def _tune(self, tuned: reload.Tuning) -> None:
        self._host.check(tuned)
        self._host.check_adapters(tuned.adapters)
        self._drain_s = self._settings.drain_s if tuned.drain_seconds is None else tuned.drain_seconds
        await self._host.tune(tuned)

    def _on_signal(self) -> None:
        if self._stop.is_set():
            os._exit(EXIT_ABANDONED)
        self._stop.set()

    async def _announce(self) -> None:
        await self._doors.update()  # a client that sees it ready may send at once
        grpc_port, http_port = self._ports
        deployment, state = self._host.deployment, self._host.state
        ready_file.write(self._settings.ready_file, state, grpc_port, http_port)
        s = "s" if self._settings.security.tls else ""
        where = f"grpc{s}://{self._settings.host}:{grpc_port} http{s}://{self._settings.host}:{http_port}"
        if state is HostState.READY:
            terminal.say(f"ready: {deployment.name} ({deployment.task}) at {where}, pid {os.getpid()}", sys.stdout)
            if self._settings.replicas is None and (told := hint(deployment.task, cores(), bool(gpus(os.environ)))):
                terminal.say(told)
        else:
            terminal.say(f"{state}: {deployment.name} ({deployment.task}) at {where}")


def _parts(settings: ServerSettings) -> tuple[Host, Doors | FrontEndPool]:
    """The host of this process, and where its requests come from."""
    bundle, replicas = settings.bundle, settings.replicas
    if AdapterPolicy.read(os.environ).calls and not settings.security.files.api_keys:
        raise RunnerFailed(
            "--allow-adapters would let anybody load adapters.", "Give --api-key-file: who has a key may."
        )
    if replicas is not None:
        pool = RayPool(bundle, replicas) if isinstance(replicas, RayOptions) else LocalPool(bundle, replicas)
        host: Host = Frontend(bundle, pool)
    elif settings.front_ends:
        engine = EngineHost(bundle, settings.front_ends)
        return engine, FrontEndPool(engine, settings.front_ends, settings.command)
    else:
        host = ScriptHost(bundle)
    return host, Doors(host, settings.security, settings.drain_s, page=settings.page, cors=settings.cors)


async def _front_end(settings: ServerSettings, place: Place) -> int:
    """Answer requests beside other front ends of one server, until told to drain; return the exit code."""
    host = FrontEndHost(FrontEndScript(settings.bundle, settings.bundle / "code", place), place)
    doors = Doors(host, settings.security, settings.drain_s, shared=True, page=settings.page, cors=settings.cors)

    def again() -> reload.Tuning:
        settings.security.reload()
        return reload.read_settings(settings.settings_file)

    opened = doors.open(settings.host, place.http_port, place.grpc_port)
    return await FrontEnd(host, doors, again, place).run(opened)
