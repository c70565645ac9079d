"""HTTP and gRPC of one process over one host."""

import asyncio
import time
from typing import Any

from local_runner.access.security import Security
from local_runner.errors import PortInUse
from local_runner.grpc import services
from local_runner.host.host import Host
from local_runner.http import app as http_app
from local_runner.http import server as http_server
from local_runner.http.cors import allowing
from local_runner.http.server import HttpDoor
from local_runner.page.page import Page
from local_runner.telemetry import logs

_HEALTH_PERIOD_S = 0.25
_LAST_REPLIES_S = 1.0


class Doors:
    """HTTP and gRPC servers of a process; `shared`: other processes of the same server answer at the same ports.

    `page`: browsers get a page at `/`; its files are open, what it asks for needs a key like every other request.
    `cors`: pages of these origins may call it.
    """

    def __init__(
        self,
        host: Host,
        security: Security,
        drain_s: float,
        shared: bool = False,
        page: bool = False,
        cors: str = "",
    ) -> None:
        self._host = host
        self._health = services.Health(host)
        self._security = security
        self._shared = shared
        guarded = security.guard(http_app.build(host))
        app = logs.Middleware(allowing(Page(guarded) if page else guarded, cors))
        self._http = HttpDoor(app, drain_s, **security.uvicorn_options())

    async def open(self, address: str, http_port: int, grpc_port: int) -> tuple[int, int]:
        """Answer on both ports, not ready yet; return them. Raises PortInUse or RunnerFailed."""
        await self._health.update()
        listener = http_server.listen(address, http_port, self._shared)
        if not self._shared:
            http_server.listen(address, grpc_port).close()  # a plain socket tells why gRPC could not bind the port
        # Built here: it belongs to the event loop that runs.
        self._grpc = services.build(self._host, self._health, self._security.interceptors(), self._shared)
        port = _bind(self._grpc, address, grpc_port, self._security.grpc_credentials())
        await self._grpc.start()
        self._http.open(listener)
        self._watching = asyncio.create_task(self._watch())
        return listener.getsockname()[1], port

    async def ready(self) -> None:
        """Do nothing: these doors are as ready as their host."""

    async def reload(self) -> None:
        """Do nothing: each connection and request looks at what may change."""

    async def update(self) -> None:
        """Publish the host's readiness now."""
        await self._health.update()

    async def _watch(self) -> None:
        """Keep grpc.health.v1 true, also if the engine dies later."""
        while True:
            await self._health.update()
            await asyncio.sleep(_HEALTH_PERIOD_S)

    async def stop(self, budget_s: float) -> None:
        """Accept no more; what is in flight has `budget_s` seconds."""
        await self._health.update()
        self._http.stop()
        self._stopping = asyncio.create_task(self._grpc.stop(budget_s))

    async def stopped(self, deadline: float) -> None:
        """Wait for the last answers, until the deadline by the monotonic clock."""
        # Open health watches would keep gRPC waiting for the whole budget; replies on their way get a moment. Where the
        # budget ends about then, the first stop does: of two that end together, one cancels calls of a server that the
        # other has destroyed, and the process crashes.
        if deadline - time.monotonic() > 2 * _LAST_REPLIES_S:
            await self._grpc.stop(_LAST_REPLIES_S)
        await asyncio.wait({self._stopping}, timeout=max(1.0, deadline - time.monotonic()))
        await self._http.stopped(deadline)
        self._watching.cancel()


def _bind(server: Any, host: str, port: int, credentials: Any) -> int:
    """Bind the gRPC server; return its port."""
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        bound = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
        return int(bound)
    except RuntimeError as error:
        raise PortInUse(f"Port {port} of {host} is in use.", "Choose another, or 0 for any free one.") from error
