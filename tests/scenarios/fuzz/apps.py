"""The HTTP application over a service of this process, on a socket of loopback."""

import asyncio
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from local_runner.bundle.script import Answer, ScoreScript
from local_runner.host.host import ScriptHost
from local_runner.http import app
from local_runner.http import server as http_server
from local_runner.telemetry import logs
from scoring.api.service import Service


class ServiceScript(ScoreScript):
    """A scoring script that is this process's own service."""

    def __init__(self, bundle: Path, service: Service) -> None:
        super().__init__(bundle)
        self._service = service

    def init(self) -> None:
        self.loaded = True

    @property
    def entry(self) -> Any:
        service = self._service
        return SimpleNamespace(
            ready=lambda: service.ready and not getattr(service, "lost", ""),
            drain=service.drain,
        )

    def run(self, raw: str, headers: Mapping[str, str] | None = None) -> Answer:
        reply = self._service.answer(raw)
        sent = {"Content-Type": "application/json", **reply.headers}
        if isinstance(reply.body, bytes):
            return Answer(reply.status, sent, reply.body)
        return Answer(reply.status, sent, chunks=reply.body, close=getattr(reply.body, "close", lambda: None))


@contextmanager
def serving(bundle: Path, service: Service) -> Iterator[str]:
    """Serve until the block ends; gives the base URL."""
    listener = http_server.listen("127.0.0.1", 0)
    host = ScriptHost(bundle, ServiceScript(bundle, service))
    server = http_server.make(logs.Middleware(app.build(host)), 2)

    async def run() -> None:
        await host.load()
        await server.serve(sockets=[listener])

    thread = threading.Thread(target=asyncio.run, args=(run(),), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()
        assert not thread.is_alive()
