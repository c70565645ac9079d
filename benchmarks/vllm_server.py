"""vLLM's server of a model folder, in processes of its own that are ended with it."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit

from benchmarks.host_side import front_ends_of, processor_s
from benchmarks.http_clients import LONGEST, LOOPBACK, MODEL, NEW
from benchmarks.peers.servers import free_port

START_S = 240.0
_LOG_LINES = 60
#: Beside what vLLM decides itself (CUDA graphs, compilation, prefix caching): room for all clients at once, contexts in
#: which it takes these prompts' letters, of which it allows six a token, memory left to the server beside it, and no
#: line of log a request.
FLAGS = ("--max-num-seqs", "256", "--max-model-len", str(2 * (LONGEST + NEW)), "--gpu-memory-utilization", "0.4")
QUIET = ("--uvicorn-log-level", "warning")
#: vLLM's sampler in torch, as where FlashInfer is not installed; and nothing is reported or fetched.
ENVIRONMENT = {"VLLM_USE_FLASHINFER_SAMPLER": "0", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}


class Server:
    """A server at a URL that answers `/v1/completions`."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise SystemExit(f"{url} is not the URL of an HTTP server; give one like http://127.0.0.1:8000")
        self.host, self.port = parts.hostname, parts.port or 80

    def wait(self) -> None:
        """Return when the server answers."""

    def processor_s(self) -> float | None:
        """Processor seconds that its processes have used, if they are known."""

    def version(self) -> str:
        """What it says of its version."""
        try:
            return str(self.ask("/version")["version"])
        except HTTPError:
            return "of unknown version"

    def ask(self, path: str, sent: dict[str, Any] | None = None) -> Any:
        """The JSON that answers a request."""
        body = None if sent is None else json.dumps(sent).encode()
        url = f"http://{self.host}:{self.port}{path}"
        with urllib.request.urlopen(urllib.request.Request(url, body, {"Content-Type": "application/json"})) as reply:
            return json.loads(reply.read() or b"null")

    def close(self) -> None:
        """Leave the server as it was found."""


class Ours(Server):
    """A server that `over_http.served` has started."""

    def __init__(self, pid: int, port: int) -> None:
        super().__init__(f"http://{LOOPBACK}:{port}")
        self.pid = pid

    def processor_s(self) -> float | None:
        return processor_s(self.pid) + sum(map(processor_s, front_ends_of(self.pid)))


class VLLM(Ours):
    """vLLM over a model folder; begins to start at once, and `wait` returns when it answers."""

    def __init__(self, model: Path, log: Path, dtype: str, packages: Path | None, flags: Sequence[str]) -> None:
        port, self.log = free_port(), log
        command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(model), "--port", str(port)]
        command += ["--host", LOOPBACK, "--served-model-name", MODEL, "--dtype", dtype, *FLAGS, *QUIET, *flags]
        environment = {**os.environ, **ENVIRONMENT}
        if packages:
            environment["PYTHONPATH"] = str(packages)
        with log.open("wb") as written:
            self._process = subprocess.Popen(
                command, env=environment, cwd=log.parent, stdout=written, stderr=written, start_new_session=True
            )
        super().__init__(self._process.pid, port)

    def wait(self) -> None:
        end = time.monotonic() + START_S
        while not self._healthy():
            if self._process.poll() is not None or time.monotonic() > end:
                lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:]
                self.close()
                raise SystemExit("\n".join([*lines, "vLLM did not start; above are the last lines of its log"]))
            time.sleep(0.2)

    def _healthy(self) -> bool:
        try:
            self.ask("/health")
        except OSError:
            return False
        return True

    def close(self) -> None:
        """End all of its processes."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.pid, number)
                self._process.wait(20)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue
