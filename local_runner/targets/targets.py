"""Hosts that parity and bench compare, behind one interface; each starts in a process of its own.

    with make_target("grpc", bundle) as target:
        target.send('{"inputs": "..."}')  # Reply(status, body, seconds)

Statuses and error bodies are HTTP's on every target, so that replies compare as they are.
"""

import http.client
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, ClassVar, Self

import grpc

from local_runner.client.client import channel_options
from local_runner.errors import RunnerFailed
from local_runner.process.launch import LOOPBACK, Azmlinfsrv, Container, Runner, carries_host, failure, tail
from local_runner.protocol import errors
from local_runner.protos import scoring_pb2, scoring_pb2_grpc
from local_runner.targets.load import Load, TargetReply, measure, together
from local_runner.targets.loops import TimedReply, timed

_TIMEOUT_S = 600.0
# Servers close idle connections; one idle for this long is not reused.
_MAX_IDLE_S = 1.0


class Target(ABC):
    """Way to reach a bundle's score.py."""

    name: ClassVar[str]
    own_form = True  # requests and errors have the form of score.py

    def __init__(self, bundle: Path) -> None:
        self.bundle = bundle.resolve()
        self._open = ExitStack()

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._open.close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.close()

    @abstractmethod
    def send(self, raw: str) -> TargetReply:
        """Send the request body `raw`, whatever it is; safe to call from several threads."""

    def takes(self, raw: str) -> bool:
        """Return True if the request has a form at this target."""
        return True

    def timed(self, raw: str) -> TimedReply:
        """Send a request and time its answer, and where this way of asking streams, its first event."""
        return timed(self.send(raw))

    def metadata(self) -> dict[str, Any]:
        """Metadata that the scoring script reports there."""
        reply = self.send(errors.METADATA_BODY)
        if reply.status != 200:
            raise errors.error_from_body(reply.body, reply.status)
        facts: dict[str, Any] = json.loads(reply.body)
        return facts

    def billed(self) -> tuple[str, int]:
        """Instance type and number of instances that answer there; "" and 0 for what no cloud bills."""
        return "", 0

    def measure(self, bodies: Sequence[str], requests: int, clients: int) -> Load:
        """Send `requests` requests with `clients` in flight at a time."""
        return measure(self.send, bodies, requests, clients)

    def together(self, bodies: Sequence[str], clients: int) -> list[list[TargetReply]]:
        """Send each body several times with `clients` in flight; returns each body's replies."""
        return together(self.send, bodies, clients)

    @abstractmethod
    def _start(self) -> None:
        """Start the host and push its cleanup on `self._open`."""


class InProcess(Target):
    """score.py called directly, in a child process; `seconds` and loads are measured inside that process."""

    name = "in-process"
    environment: Mapping[str, str] = MappingProxyType({})  # added to this process's own

    def _start(self) -> None:
        command = [sys.executable, "-m", "local_runner.targets.inprocess", str(self.bundle)]
        env = {**os.environ, **self.environment}
        self._log = self._open.enter_context(tempfile.TemporaryFile())  # noqa: SIM115  (the stack closes it)
        self._child = self._open.enter_context(
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, encoding="utf-8", env=env
            )
        )
        self._open.callback(self._child.kill)  # it holds nothing that a clean end would save
        self._lock = threading.Lock()
        first = self._read()
        if first["state"] != "ready":
            raise failure(first)

    def send(self, raw: str) -> TargetReply:
        return _reply(self._ask({"body": raw}))

    def measure(self, bodies: Sequence[str], requests: int, clients: int) -> Load:
        answer = self._ask({"bench": {"bodies": list(bodies), "requests": requests, "clients": clients}})
        return Load(tuple(answer["seconds"]), tuple(answer["statuses"]), answer["elapsed"])

    def together(self, bodies: Sequence[str], clients: int) -> list[list[TargetReply]]:
        answer = self._ask({"together": {"bodies": list(bodies), "clients": clients}})
        return [[_reply(one) for one in replies] for replies in answer["replies"]]

    def _ask(self, command: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            pipe = self._pipe(self._child.stdin)
            pipe.write(json.dumps(command) + "\n")
            pipe.flush()
            return self._read()

    def _read(self) -> dict[str, Any]:
        line = self._pipe(self._child.stdout).readline()
        if not line:
            code = self._child.wait()
            self._log.seek(0)
            raise RunnerFailed(
                f"The in-process host ended with exit code {code}: {tail(self._log.read().decode(errors='replace'))}"
            )
        message: dict[str, Any] = json.loads(line)
        return message

    @staticmethod
    def _pipe(pipe: IO[str] | None) -> IO[str]:
        if pipe is None:
            raise RunnerFailed("The in-process host has no pipe.")
        return pipe


class Grpc(Target):
    """Local runner's own gRPC service; a streamed answer is assembled into its HTTP form."""

    name = "grpc"

    def _start(self) -> None:
        self._connect(self._open.enter_context(Runner(self.bundle)).grpc_port)

    def _connect(self, port: int) -> None:
        self.address = f"{LOOPBACK}:{port}"
        channel = grpc.insecure_channel(self.address, channel_options(self.address, retry=False))
        self._stub = scoring_pb2_grpc.ScoringStub(self._open.enter_context(channel))

    def send(self, raw: str) -> TargetReply:
        return self._ask(raw, [])

    def timed(self, raw: str) -> TimedReply:
        arrivals: list[float] = []
        began = time.perf_counter()
        reply = self._ask(raw, arrivals)
        return timed(reply, arrivals[0] - began if arrivals else None)

    def _ask(self, raw: str, arrivals: list[float]) -> TargetReply:
        """Send a request; of a stream, note when each event arrived."""
        request = scoring_pb2.ScoreRequest(json=raw)
        began = time.perf_counter()
        pieces: list[bytes] = []
        try:
            if _streams(raw):
                for event in self._stub.ScoreStream(request, timeout=_TIMEOUT_S):
                    arrivals.append(time.perf_counter())
                    pieces.append(_event(event.json.encode()))
                status, body = 200, b"".join([*pieces, _event(errors.DONE.encode())])
            else:
                status, body = 200, self._stub.Score(request, timeout=_TIMEOUT_S).json.encode()
        except grpc.RpcError as error:
            status, body = errors.reply_of(error, self.address, _TIMEOUT_S)
            if pieces:
                status, body = 200, b"".join([*pieces, _event(body)])
        return TargetReply(status, body, time.perf_counter() - began)


class _OverHttp(Target):
    """Base of the HTTP targets: one connection per thread."""

    port: int

    def __init__(self, bundle: Path) -> None:
        super().__init__(bundle)
        self._local = threading.local()
        self._connections: list[http.client.HTTPConnection] = []

    def __exit__(self, *exception: object) -> None:
        for connection in self._connections:
            connection.close()
        super().__exit__(*exception)

    def send(self, raw: str) -> TargetReply:
        return self._ask(raw)[0]

    def timed(self, raw: str) -> TimedReply:
        return timed(*self._ask(raw))

    def _ask(self, raw: str) -> tuple[TargetReply, float | None]:
        """Reply to a request, and of a stream the seconds to its first event."""
        data = raw.encode()
        began = time.perf_counter()
        connection = self._connection()
        connection.request("POST", "/score", data, {"Content-Type": "application/json"})
        response = connection.getresponse()
        first, beginning = None, b""
        if (response.getheader("Content-Type") or "").startswith("text/event-stream"):
            beginning = response.readline()
            first = time.perf_counter() - began
        body = beginning + response.read()
        self._local.used = time.monotonic()
        return TargetReply(response.status, body, time.perf_counter() - began), first

    def _connection(self) -> http.client.HTTPConnection:
        fresh = time.monotonic() - getattr(self._local, "used", 0.0) < _MAX_IDLE_S
        connection: http.client.HTTPConnection | None = getattr(self._local, "connection", None)
        if connection is None or not fresh:
            if connection is not None:
                connection.close()
            connection = http.client.HTTPConnection(LOOPBACK, self.port, timeout=_TIMEOUT_S)
            self._local.connection = connection
            self._connections.append(connection)
        return connection


class Http(_OverHttp):
    """Local runner's HTTP port."""

    name = "http"

    def _start(self) -> None:
        self.port = self._open.enter_context(Runner(self.bundle)).http_port


class AzureServer(_OverHttp):
    """Azure ML's own server, azureml-inference-server-http."""

    name = "azmlinfsrv"

    def _start(self) -> None:
        self.port = self._open.enter_context(Azmlinfsrv(self.bundle)).port


class InContainer(_OverHttp):
    """Bundle's own server, started as the image starts it."""

    name = "container"

    def _start(self) -> None:
        server: Container | Azmlinfsrv = (
            Container(self.bundle) if carries_host(self.bundle) else Azmlinfsrv(self.bundle)
        )
        self.port = self._open.enter_context(server).port


TARGETS: dict[str, type[Target]] = {cls.name: cls for cls in (InProcess, Grpc, Http, AzureServer, InContainer)}


def make_target(name: str, bundle: Path) -> Target:
    """Create the target of that name over the bundle, not started yet."""
    return TARGETS[name](bundle)


def _reply(told: dict[str, Any]) -> TargetReply:
    return TargetReply(told["status"], told["body"].encode(), told["seconds"])


def _streams(raw: str) -> bool:
    try:
        payload = json.loads(raw)
    except ValueError:
        return False
    return isinstance(payload, dict) and payload.get("stream") is True


def _event(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"
