"""uvicorn as every host here runs it: on a given socket, without its own signal handlers."""

import contextlib
import errno
import logging
import socket
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


def listen(host: str, port: int) -> socket.socket:
    """Open a listening socket that no other process can share. Raises PortInUse or RunnerFailed."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(f"Port {port} of {host} is in use.", "Choose another, or 0 for any free one.") from error
        raise RunnerFailed(f"{host}:{port} cannot be listened on: {error.strerror or error}.") from error
