"""The servers that are compared, each a process group of its own that is stopped while another is measured."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from local_runner.process.launch import LOOPBACK, Azmlinfsrv

START_S = 240.0
HERE = Path(__file__).resolve().parent


class Server:
    """A running server: what it is called, its protocol, where it listens, and its turn."""

    def __init__(self, name: str, protocol: str, port: int, group: int) -> None:
        self.name, self.protocol, self.port, self._group = name, protocol, port, group

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Let it run; outside of its turns the server takes no processor time at all."""
        self._signal(signal.SIGCONT)
        try:
            yield
        finally:
            self._signal(signal.SIGSTOP)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._group, number)


def start(name: str, command: list[str], port: int, log: Path, **environment: str) -> Server:
    """Start an HTTP server that answers POST /score, wait until it does, and stop it until its turn."""
    env = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", **environment}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env=env,
            cwd=log.parent,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    server = Server(name, "http", port, process.pid)
    deadline = time.monotonic() + START_S
    while not answers(port):
        if process.poll() is not None or time.monotonic() > deadline:
            server.kill()
            raise RuntimeError(f"{name} does not answer: {log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.2)
    server._signal(signal.SIGSTOP)
    return server


def ours(name: str, bundle: Path, folder: Path, *flags: str) -> tuple[Server, Server]:
    """The runner over a bundle, as an HTTP server and as a gRPC server: one process group, two ports."""
    port, grpc_port = free_port(), free_port()
    command = [
        sys.executable,
        "-m",
        "local_runner",
        str(bundle),
        "--http-port",
        str(port),
        "--grpc-port",
        str(grpc_port),
        *flags,
    ]
    http = start(f"{name}, HTTP", command, port, folder / f"{bundle.name}-{port}.log")
    return http, Server(f"{name}, gRPC", "grpc", grpc_port, http._group)


def litserve(model: Path, folder: Path, *tuned: str) -> Server:
    """LitServe with batching."""
    port = free_port()
    command = [sys.executable, str(HERE / "litserve_server.py"), str(model), str(port), *tuned]
    return start("LitServe", command, port, folder / f"litserve-{port}.log")


def azmlinfsrv(model: Path, folder: Path) -> Server:
    """Azure's own server as Azure runs it, one process with threads, over a plain scoring script."""
    port = free_port()
    command = [sys.executable, "-m", "gunicorn", "--bind", f"{LOOPBACK}:{port}", "--worker-class", "gthread"]
    command += ["--workers", "1", "--threads", str(Azmlinfsrv.threads), "--timeout", "600", "--keep-alive", "75"]
    command += ["--no-control-socket", "azureml_inference_server_http.server.entry:app"]
    places = {"AML_APP_ROOT": str(HERE / "azure_code"), "AZUREML_MODEL_DIR": str(model)}
    return start("azmlinfsrv", command, port, folder / "azmlinfsrv.log", AZUREML_ENTRY_SCRIPT="score.py", **places)


def free_port() -> int:
    with socket.create_server((LOOPBACK, 0)) as listener:
        return int(listener.getsockname()[1])


def ask(port: int, text: str) -> object:
    """What an HTTP server answers to one text."""
    request = urllib.request.Request(
        f"http://{LOOPBACK}:{port}/score", json.dumps({"inputs": text}).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


def answers(port: int) -> bool:
    try:
        return bool(ask(port, "Are you there?"))
    except OSError:
        return False
