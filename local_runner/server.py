"""One process that serves one bundle: gRPC and HTTP on one event loop, loading behind open ports, draining on SIGTERM.

Import this only after `manifest.enter`: it imports `scoring`, which has to be the bundle's.
"""

import asyncio
import contextlib
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop

from local_runner import environment, grpc_services, http_app, http_server, logs, ray_cluster, ready_file, tuning
from local_runner.errors import PortInUse, RunnerFailed
from local_runner.hangup import Terminal
from local_runner.host import Host, State
from local_runner.ray_host import RayHost
from local_runner.ray_options import RayOptions
from local_runner.replica_host import ReplicaHost
from local_runner.replica_options import ReplicaOptions
from local_runner.security import Security
from scoring.errors import MiiAzureError

EXIT_ABANDONED = 1
_HEALTH_PERIOD_S = 0.25


@dataclass(frozen=True)
class Settings:
    """How to serve; a port of 0 picks a free one."""

    bundle: Path
    host: str = "127.0.0.1"
    grpc_port: int = 50051
    http_port: int = 5001
    drain_s: float = 30.0
    ready_file: Path | None = None
    security: Security = field(default_factory=Security)
    ray: RayOptions | None = None
    replicas: ReplicaOptions | None = None
    settings_file: Path | None = None


def serve(settings: Settings) -> int:
    """Serve until a signal; return the exit code. Raises what keeps the runner from serving."""
    if differing := environment.report(environment.differences(settings.bundle)):
        _say(differing)
    if settings.ray:
        ray_cluster.connect(settings.ray.address)
    return uvloop.run(_Runner(settings).run())


class _Runner:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._terminal = Terminal()
        self._host = _host(settings)
        self._health = grpc_services.Health(self._host)
        self._ports = (0, 0)

    async def run(self) -> int:
        """Bind, load, announce, wait for a signal, drain."""
        settings = self._settings
        self._stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal)
        await self._tune(tuning.read(settings.settings_file))
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._on_hangup)
        await self._open()
        await self._announce()
        watching = asyncio.create_task(self._watch())
        loading = asyncio.create_task(self._host.load())
        stopping = asyncio.create_task(self._stop.wait())
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
        watching.cancel()
        if settings.ready_file:
            settings.ready_file.unlink(missing_ok=True)
        return code

    async def _open(self) -> None:
        """Bind both ports and answer on them, not ready yet. Raises PortInUse or RunnerFailed."""
        settings = self._settings
        listener = http_server.listen(settings.host, settings.http_port)
        security = settings.security
        self._grpc = grpc_services.build(self._host, self._health, security.interceptors())
        await self._health.update()
        grpc_port = _bind_grpc(self._grpc, settings.host, settings.grpc_port, security.grpc_credentials())
        self._ports = (grpc_port, listener.getsockname()[1])
        await self._grpc.start()
        app = logs.Middleware(security.guard(http_app.build(self._host)))
        self._http = http_server.make(app, settings.drain_s, **security.uvicorn_options())
        self._serving = asyncio.create_task(self._http.serve(sockets=[listener]))

    async def _watch(self) -> None:
        """Keep grpc.health.v1 true, also when the engine dies later."""
        while True:
            await self._health.update()
            await asyncio.sleep(_HEALTH_PERIOD_S)

    async def _close(self, budget_s: float) -> int:
        """Stop accepting, finish what is in flight within the budget; return the exit code."""
        deadline = time.monotonic() + budget_s
        if self._host.state is not State.FAILED:
            self._host.change(State.DRAINING)
        await self._health.update()
        self._http.should_exit = True
        stopping = asyncio.create_task(self._grpc.stop(budget_s))
        abandoned = await self._host.finish(budget_s)
        # Open health watches would keep gRPC waiting for the whole budget; replies on their way get a moment.
        await self._grpc.stop(min(1.0, max(0.0, deadline - time.monotonic())))
        await asyncio.wait({stopping, self._serving}, timeout=max(1.0, deadline - time.monotonic()))
        if abandoned:
            _say(f"{abandoned} requests were abandoned after {budget_s:g} s of draining.")
        return EXIT_ABANDONED if abandoned else 0

    def _on_hangup(self) -> None:
        self._hanging_up = asyncio.create_task(self._hang_up())

    async def _hang_up(self) -> None:
        """Read again what an operator may have changed; but end where the terminal of this process was closed."""
        if not self._terminal.gone():
            await self._reload()
        if await self._terminal.goes():
            self._terminal.leave()
            self._stop.set()

    async def _reload(self) -> None:
        """Read keys, certificates and settings again; one that is wrong leaves all of them as they were."""
        security = self._settings.security
        try:
            tuned = tuning.read(self._settings.settings_file)
            self._check(tuned)
            security.reload()
        except MiiAzureError as error:
            _say(f"not reloaded: {error}")
            return
        await self._tune(tuned)
        parts = [part for part in (security.summary(), tuned.told()) if part]
        _say("reloaded: " + (", ".join(parts) or "the settings of the command line"))

    async def _tune(self, tuned: tuning.Tuning) -> None:
        self._check(tuned)
        self._drain_s = self._settings.drain_s if tuned.drain_seconds is None else tuned.drain_seconds
        await self._host.tune(tuned)

    def _check(self, tuned: tuning.Tuning) -> None:
        if self._settings.ray and tuned.limits:
            names = " and ".join(tuned.limits)
            raise RunnerFailed(f"{names} cannot change in a Ray cluster.", "Its replicas go by the bundle.")

    def _on_signal(self) -> None:
        if self._stop.is_set():
            os._exit(EXIT_ABANDONED)
        self._stop.set()

    async def _announce(self) -> None:
        await self._health.update()  # whoever reads that it is ready may ask at once
        grpc_port, http_port = self._ports
        deployment, state = self._host.deployment, self._host.state
        ready_file.write(self._settings.ready_file, state, grpc_port, http_port)
        s = "s" if self._settings.security.tls else ""
        where = f"grpc{s}://{self._settings.host}:{grpc_port} http{s}://{self._settings.host}:{http_port}"
        if state is State.READY:
            sys.stdout.write(f"ready: {deployment.name} ({deployment.task}) at {where}, pid {os.getpid()}\n")
            sys.stdout.flush()
        else:
            _say(f"{state}: {deployment.name} ({deployment.task}) at {where}")


def _host(settings: Settings) -> Host:
    if settings.ray:
        return RayHost(settings.bundle, settings.ray)
    return ReplicaHost(settings.bundle, settings.replicas) if settings.replicas else Host(settings.bundle)


def _bind_grpc(server: Any, host: str, port: int, credentials: Any) -> int:
    """Bind the gRPC server; return its port. The attempt with a plain socket tells why it would fail."""
    http_server.listen(host, port).close()
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        bound = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
        return int(bound)
    except RuntimeError as error:
        raise PortInUse(f"Port {port} of {host} is in use.", "Choose another, or 0 for any free one.") from error


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # whoever would read it may have closed the terminal
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
