"""The fake cloud: one HTTPS server that is ARM, the blob store or an endpoint, by the name it is called by."""

import json
import re
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.mii_azure.azure.fake_arm.arm import Arm
from tests.mii_azure.azure.fake_arm.blobs import Blobs
from tests.mii_azure.azure.fake_arm.certificate import make_certificate
from tests.mii_azure.azure.fake_arm.login import Login
from tests.mii_azure.azure.fake_arm.scoring import Scoring

SUFFIX = "fakeazure.test"
ARM_HOST = f"management.{SUFFIX}"
NAMES = [ARM_HOST, f"*.{SUFFIX}", f"*.blob.core.{SUFFIX}", f"*.eastus.inference.{SUFFIX}"]
METADATA = {
    "azure_portal": f"https://portal.{SUFFIX}/",
    "resource_manager": f"https://{ARM_HOST}/",
    "active_directory": f"https://login.{SUFFIX}/",
    "aml_resource_id": f"https://ml.{SUFFIX}/",
    "storage_endpoint": f"core.{SUFFIX}",
    "registry_discovery_endpoint": f"https://eastus.api.{SUFFIX}/",
}


@dataclass
class Request:
    """What was sent."""

    method: str
    host: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes
    target: str = ""  # path and query as they were sent

    @property
    def json(self) -> Any:
        return json.loads(self.body) if self.body else None


@dataclass
class Answer:
    """What is answered; `drop` closes the connection instead."""

    status: int
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    drop: bool = False


@dataclass
class Fault:
    """Answers the next `times` requests that match, after letting `after` of them through."""

    method: str
    where: str  # a regular expression on host and path
    answer: Answer | Callable[[Request], Answer | None]
    times: int = 1
    after: int = 0

    def take(self, request: Request) -> Answer | None:
        if request.method != self.method or not re.search(self.where, request.host + request.path) or not self.times:
            return None
        if self.after:
            self.after -= 1
            return None
        self.times -= 1
        return self.answer(request) if callable(self.answer) else self.answer


class Cloud:
    """Start with `with Cloud(folder) as cloud`; `cloud.log` is everything that was sent to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.certificate, self._key = make_certificate(folder, NAMES)
        self.lock = threading.RLock()
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        old = getattr(self, "scoring", None)
        self.log: list[Request] = []
        self.faults: list[Fault] = []
        self.blobs = Blobs()
        self.scoring = Scoring(self, old.hosts if old else None)
        self.arm = Arm(self)
        self.login = Login(self)

    def __enter__(self) -> "Cloud":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self._key)
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self.scoring.close()

    @contextmanager
    def resolved(self) -> Any:
        """Within, the fake's names resolve to this server, and no other name resolves at all but loopback."""
        real = socket.getaddrinfo

        def lookup(host: Any, port: Any, *rest: Any, **options: Any) -> Any:
            name = host.decode() if isinstance(host, bytes) else host
            if name and name.endswith(f".{SUFFIX}"):
                return real("127.0.0.1", self.port, *rest, **options)
            return real(host, port, *rest, **options)

        socket.getaddrinfo = lookup
        try:
            yield
        finally:
            socket.getaddrinfo = real

    def answer(self, request: Request) -> Answer:
        with self.lock:
            self.log.append(request)
            for fault in self.faults:
                found = fault.take(request)
                if found is not None:
                    return found
        if ".blob." in request.host:
            with self.lock:
                return self.blobs.answer(request)
        if request.host.startswith(("login.", "actions.")):
            with self.lock:
                return self.login.answer(request)
        if ".inference." in request.host:
            return self.scoring.answer(request)
        with self.lock:
            return self.arm.answer(request)

    def sent(self, method: str, where: str) -> list[Request]:
        """Requests so far whose host and path match."""
        with self.lock:
            return [r for r in self.log if r.method == method and re.search(where, r.host + r.path)]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no error of the fake."""


def _handler(cloud: Cloud) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # else each answer waits 40 ms for the acknowledgement of its headers

        def _serve(self) -> None:
            parts = urlsplit(self.path)
            query = {key: values[-1] for key, values in parse_qs(parts.query, keep_blank_values=True).items()}
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {key.lower(): value for key, value in self.headers.items()}
            host = headers.get("host", "").partition(":")[0]
            answer = cloud.answer(Request(self.command, host, unquote(parts.path), query, headers, body, self.path))
            if answer.drop:
                self.close_connection = True
                self.connection.close()
                return
            data = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
            data = b"" if answer.body is None else data
            self.send_response(answer.status)
            given = {"Content-Type": "application/json", "x-ms-request-id": "req-0001", **answer.headers}
            for key, value in {**given, "Content-Length": str(len(data))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_PATCH = _serve  # noqa: N815

        def log_message(self, *arguments: Any) -> None:
            """Say nothing."""

    return Handler
