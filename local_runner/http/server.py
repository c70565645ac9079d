"""uvicorn as every host here runs it: on a given socket, without its own signal handlers."""

import asyncio
import contextlib
import errno
import logging
import socket
import time
from collections.abc import Iterator
from typing import Any

import uvicorn

from local_runner.errors import PortInUse, RunnerFailed
from local_runner.http.uvicorn_protocol import Protocol

logger = logging.getLogger(__name__)

# Longer than a load balancer keeps an idle connection, so that the client's side closes first.
KEEP_ALIVE_S = 75


class HttpServer(uvicorn.Server):
    """uvicorn without its own signal handlers: one drain covers all protocols."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class HttpDoor:
    """uvicorn over a socket that listens already, until `stop`."""

    def __init__(self, app: Any, drain_s: float, **options: Any) -> None:
        self._server = make(app, drain_s, **options)
        self._serving: asyncio.Task[None]

    def open(self, listener: socket.socket) -> None:
        """Begin to answer."""
        self._serving = asyncio.create_task(self._server.serve(sockets=[listener]))

    def stop(self) -> None:
        """Accept no more connections; those that are open finish what they answer."""
        self._server.should_exit = True

    async def stopped(self, deadline: float) -> None:
        """Wait for the last answer, until the deadline by the monotonic clock but a second at least."""
        await asyncio.wait({self._serving}, timeout=max(1.0, deadline - time.monotonic()))


def make(app: Any, drain_s: float, **options: Any) -> HttpServer:
    """Create a server of `app`, not started; `options` are uvicorn's, for certificates."""
    config = uvicorn.Config(
        app,
        http=Protocol,
        ws="none",  # no route uses websockets, and that protocol has none of our limits
        lifespan="off",
        log_config=None,
        access_log=logger.isEnabledFor(logging.DEBUG),
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, int(drain_s)),
        **options,
    )
    return HttpServer(config)


def listen(host: str, port: int, shared: bool = False) -> socket.socket:
    """Open a listening socket that only processes which share it on purpose can. Raises PortInUse or RunnerFailed."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024, reuse_port=shared)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(f"Port {port} of {host} is in use.", "Choose another, or 0 for any free one.") from error
        raise RunnerFailed(f"{host}:{port} cannot be listened on: {error.strerror or error}.") from error
