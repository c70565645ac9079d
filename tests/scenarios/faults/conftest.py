"""Real servers of the stub bundle, and small tools to break what is around them."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from local_runner.process import ready_file
from tests.local_runner.conftest import azmlinfsrv, bundle, make_bundle, own_bundle, runner
from tests.waiting import until

__all__ = ["azmlinfsrv", "bundle", "make_bundle", "own_bundle", "runner", "until"]

HOST = "127.0.0.1"


class Served:
    """`python -m local_runner` with its output where the test wants it."""

    def __init__(
        self, bundle: Path, folder: Path, output: Any, arguments: tuple[str, ...], env: dict[str, str]
    ) -> None:
        self.ready = folder / "ready.json"
        command = [sys.executable, "-m", "local_runner", str(bundle), "--grpc-port", "0", "--http-port", "0"]
        self.process = subprocess.Popen(
            [*command, "--ready-file", str(self.ready), *arguments],
            stdout=output,
            stderr=output,
            env={**os.environ, **env},
        )
        found = until(lambda: self._ready(), 60)
        self.http_port, self.grpc_port = found["http_port"], found["grpc_port"]

    def _ready(self) -> dict[str, Any]:
        assert self.process.poll() is None, "it ended"
        found = ready_file.read(self.ready)
        return found if found.get("state") == "ready" else {}

    @property
    def base(self) -> str:
        return f"http://{HOST}:{self.http_port}"

    def score(self, inputs: Any, timeout: float = 20, **more: Any) -> httpx.Response:
        return httpx.post(f"{self.base}/score", json={"inputs": inputs, **more}, trust_env=False, timeout=timeout)


@contextmanager
def served(
    bundle: Path, folder: Path, *arguments: str, output: Any = subprocess.DEVNULL, **env: str
) -> Iterator[Served]:
    """A runner that is killed when the block ends, if it has not ended by itself."""
    started = Served(bundle, folder, output, arguments, env)
    try:
        yield started
    finally:
        started.process.kill()
        started.process.wait()


def lines(path: Path) -> int:
    """How many lines a file has that may not be there yet."""
    return len(path.read_text().splitlines()) if path.exists() else 0


def connect(port: int, receive_buffer: int = 0) -> socket.socket:
    """A TCP connection; a small buffer makes a reader that does not read noticed soon."""
    connection = socket.socket()
    if receive_buffer:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.settimeout(20)
    connection.connect((HOST, port))
    return connection


def resident(pid: int) -> int:
    """Bytes of memory that a process holds."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak(pid: int) -> int:
    """Most bytes of memory that a process has held."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) * 1024
