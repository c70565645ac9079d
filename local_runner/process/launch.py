"""Starts hosts in child processes and ends them: the local runner, and Azure's inference server."""

import contextlib
import http.client
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

from local_runner.bundle import manifest
from local_runner.errors import RunnerFailed
from local_runner.flags import serving
from local_runner.flags.flag import twins
from local_runner.process import leash, ready_file
from local_runner.process.scratch import Scratch
from local_runner.protocol.errors import error_from_body

LOOPBACK = "127.0.0.1"
START_TIMEOUT_S = 600.0
_STOP_TIMEOUT_S = 40.0  # longer than a runner's own drain budget
_TAIL_LINES = 6
_OPERATORS_OWN = twins(serving.OPERATORS)
_CONTAINERS_OWN = ("AML_", "AZUREML_", "MII_AZURE_", "HF_", "PYTHON")
_COMMAND = re.compile(r"^CMD (\[.*\])$", re.MULTILINE)
_TRACEBACK = "Traceback (most recent call last):"
_CHAINED = ("The above exception", "During handling of the above")
# The last line of a traceback.
_EXCEPTION = re.compile(r"[\w.]+(: |$)")


class HostProcess:
    """Host as a child process on loopback, with a scratch folder for its log; use as a context manager.

    It ends with this process, however that ends.
    """

    port = 0  # HTTP port, once the host is up

    def __init__(self, bundle: Path, timeout_s: float = START_TIMEOUT_S) -> None:
        self.bundle = bundle.resolve()
        self.timeout_s = timeout_s
        self.process: subprocess.Popen[bytes]

    def __enter__(self) -> Self:
        self._scratch = Scratch()
        self.folder = self._scratch.path
        try:
            self._start()
            self._wait()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def log(self) -> Path:
        """Log of the host so far."""
        return self.folder / "host.log"

    def stop(self) -> int | None:
        """Send SIGTERM, then SIGKILL if it does not end; return its exit code. Removes the log."""
        process: subprocess.Popen[bytes] | None = getattr(self, "process", None)
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            try:
                process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdin:
                process.stdin.close()
        self._scratch.remove()
        return process.returncode if process else None

    def _start(self) -> None:
        raise NotImplementedError

    def _up(self) -> bool:
        """Return True if the host is ready; raises the error that it reports for not becoming so."""
        raise NotImplementedError

    def _spawn(self, command: list[str], env: dict[str, str], **options: Any) -> None:
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                env={**env, **leash.ENVIRONMENT},
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                **options,
            )

    def _wait(self) -> None:
        deadline = time.monotonic() + self.timeout_s
        while not self._up():
            if self.process.poll() is not None:
                self._up()  # its last report may name the reason
                raise RunnerFailed(f"The host ended with exit code {self.process.returncode}: {self._tail()}")
            if time.monotonic() > deadline:
                raise RunnerFailed(f"The host was not ready after {self.timeout_s:g} s: {self._tail()}")
            time.sleep(0.02)

    def _tail(self) -> str:
        return tail(self.log.read_text(encoding="utf-8", errors="replace"))


class Runner(HostProcess):
    """`python -m local_runner` on free ports."""

    def __init__(
        self,
        bundle: Path,
        timeout_s: float = START_TIMEOUT_S,
        arguments: tuple[str, ...] = (),
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        super().__init__(bundle, timeout_s)
        self._arguments, self._environment = arguments, environment
        self.grpc_port = self.http_port = 0

    def _start(self) -> None:
        self._ready = self.folder / "ready.json"
        command = [sys.executable, "-m", "local_runner", str(self.bundle), "--host", LOOPBACK]
        command += ["--grpc-port", "0", "--http-port", "0", "--ready-file", str(self._ready)]
        # A child runner on loopback is one process without certificates and keys, unless they are given here.
        kept = {name: value for name, value in os.environ.items() if name not in _OPERATORS_OWN}
        self._spawn([*command, *self._arguments], {**kept, **self._environment})

    def _up(self) -> bool:
        state = ready_file.read(self._ready)
        if state.get("state") == "failed":
            raise failure(state)
        self.grpc_port, self.http_port = state.get("grpc_port", 0), state.get("http_port", 0)
        return state.get("state") == "ready"


class Azmlinfsrv(HostProcess):
    """Real azureml-inference-server-http: its WSGI app under gunicorn, as in Azure but on loopback.

    One worker, because each loads the model again; several threads, so that health answers while a request runs.
    """

    threads = 16

    def _start(self) -> None:
        for weights in (False, True):
            manifest.verify_hashes(self.bundle, weights)
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("AML_", "AZUREML_"))}
        kept.pop("GUNICORN_CMD_ARGS", None)
        model = self.bundle / "model"
        if not model.is_dir():  # the model is a reference, mounted by whoever starts the host
            model = Path(os.environ.get("AZUREML_MODEL_DIR", model))
        env = {
            **kept,
            "AML_APP_ROOT": str(self.bundle / "code"),
            "AZUREML_ENTRY_SCRIPT": "score.py",
            "AZUREML_MODEL_DIR": str(model),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        with socket.create_server((LOOPBACK, 0), backlog=256) as listener:
            self.port = listener.getsockname()[1]
            # Inheriting the socket leaves no moment in which another process could take the port.
            command = [sys.executable, "-m", "gunicorn", "--bind", f"fd://{listener.fileno()}"]
            command += ["--worker-class", "gthread", "--workers", "1", "--threads", str(self.threads)]
            command += ["--timeout", "300", "--keep-alive", "75", "--no-control-socket", "--config", leash.__file__]
            command.append("azureml_inference_server_http.server.entry:app")
            self._spawn(command, env, pass_fds=(listener.fileno(),))

    def _up(self) -> bool:
        connection = http.client.HTTPConnection(LOOPBACK, self.port, timeout=2)
        try:
            connection.request("GET", "/")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()


class Container(HostProcess):
    """Command of a bundle made with `--server http`, started as its container does, but on loopback.

    code/ and model/ are mounted apart from each other and from the rest of the bundle, the working directory is
    another one, and the environment is that of Dockerfile, deployment.yml and Azure ML. The image itself is not built.
    """

    def _start(self) -> None:
        for weights in (False, True):
            manifest.verify_hashes(self.bundle, weights)
        code, model = self.folder / "azureml-app" / "code", self.folder / "azureml-models" / "model" / "1"
        shutil.copytree(self.bundle / "code", code, ignore=shutil.ignore_patterns("__pycache__"))
        model.mkdir(parents=True)
        source = self.bundle / "model"
        (model / "model").symlink_to(source if source.is_dir() else Path(os.environ.get("AZUREML_MODEL_DIR", source)))
        self._ready = self.folder / "ready.json"
        kept = {key: value for key, value in os.environ.items() if not key.startswith(_CONTAINERS_OWN)}
        env = {
            **kept,
            **_settings(self.bundle),
            "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath))),
            "AML_APP_ROOT": str(code),
            "AZUREML_ENTRY_SCRIPT": "score.py",
            "AZUREML_MODEL_DIR": str(model).replace("/model/1", "//model/1"),  # as Azure ML writes it
            serving.HOST.twin: LOOPBACK,
            serving.HTTP_PORT.twin: "0",
            serving.READY_FILE.twin: str(self._ready),
        }
        dockerfile = (self.bundle / "environment" / "Dockerfile").read_text(encoding="utf-8")
        self._spawn(json.loads(_COMMAND.findall(dockerfile)[-1]), env)

    def _up(self) -> bool:
        state = ready_file.read(self._ready)
        if state.get("state") == "failed":
            raise failure(state)
        self.port = state.get("http_port", 0)
        return state.get("state") == "ready"


def carries_host(bundle: Path) -> bool:
    """True if the bundle was made with `--server http`."""
    return (bundle / "code" / "local_runner").is_dir()


def _settings(bundle: Path) -> dict[str, str]:
    """Environment variables for the server from the image and deployment.yml, without the image's own paths."""
    import yaml

    dockerfile = (bundle / "environment" / "Dockerfile").read_text(encoding="utf-8")
    words = " ".join(line.removeprefix("ENV ") for line in dockerfile.splitlines() if line.startswith("ENV "))
    image = dict(word.split("=", 1) for word in shlex.split(words) if word.startswith(_CONTAINERS_OWN))
    path = bundle / "deployment.yml"  # which a bundle for KAITO does without
    deployment = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return image | {key: str(value) for key, value in deployment.get("environment_variables", {}).items()}


def failure(state: dict[str, Any]) -> Exception:
    """Rebuild the error in a runner's ready file as an exception of the same class."""
    return error_from_body(json.dumps(state).encode(), 500)


def tail(log: str) -> str:
    """Last words of a host's log: the exceptions of the last chain, root cause first, and the last lines."""
    lines = [line for line in log.splitlines() if line.strip()]
    chain: list[str] = []
    for above, line in pairwise(lines):
        if line.endswith(_TRACEBACK) and not above.startswith(_CHAINED):
            chain = []
        elif above.startswith("  ") and _EXCEPTION.match(line):
            chain.append(line)
    last = [line for line in lines[-_TAIL_LINES:] if line not in chain]
    return "\n".join([*chain, *last]) or "it wrote nothing."
