"""Local deployments by name: MII's deploy, client and terminate over the local runner."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mii_azure.errors import NotAvailable, RunnerFailed, UnknownDeployment
from mii_azure.spec import check_name

if TYPE_CHECKING:
    from local_runner.client import AsyncClient, Client

START_TIMEOUT_S = 600.0
# Runners that this process started; they outlive it, and until then it must reap them.
_children: dict[int, "subprocess.Popen[bytes]"] = {}
STOP_TIMEOUT_S = 40.0  # longer than the runner's own drain budget


class DeploymentType(Enum):
    """Where a deployment runs."""

    LOCAL = "local"
    AML = "aml"


@dataclass(frozen=True)
class LocalDeployment:
    """A running local runner."""

    name: str
    bundle: str
    pid: int
    host: str
    grpc_port: int
    http_port: int


def home() -> Path:
    """Where local deployments live; MII_AZURE_HOME overrides the user's cache folder."""
    base = os.environ.get("MII_AZURE_HOME")
    return Path(base) if base else Path.home() / ".cache" / "mii_azure" / "deployments"


def deploy(
    task: str,
    model: str,
    deployment_name: str,
    deployment_type: DeploymentType = DeploymentType.LOCAL,
    timeout_s: float = START_TIMEOUT_S,
    **preferences: Any,
) -> LocalDeployment:
    """Generate a bundle and serve it on this machine until `terminate`; `preferences` are those of `generate`.

    Raises what generation raises, RunnerFailed when it does not become ready, NotAvailable for Azure.
    """
    if deployment_type is not DeploymentType.LOCAL:
        raise NotAvailable(
            "Deploying to Azure ML from Python is not part of this version.",
            "Call mii_azure.generate(...) and run the bundle's deploy.sh.",
        )
    from mii_azure.generation import generate

    if _read(deployment_name) is not None:
        raise RunnerFailed(
            f"The deployment {deployment_name!r} is running already.",
            f"Call mii_azure.terminate({deployment_name!r}) first.",
        )
    folder = home() / check_name(deployment_name)
    bundle = generate(task, model, deployment_name, output=folder / "bundle", force=True, **preferences)
    return _start(deployment_name, bundle, folder, timeout_s)


def _start(name: str, bundle: Path, folder: Path, timeout_s: float) -> LocalDeployment:
    ready, log = folder / "ready.json", folder / "runner.log"
    ready.unlink(missing_ok=True)
    command = [sys.executable, "-m", "local_runner", str(bundle), "--grpc-port", "0", "--http-port", "0"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--ready-file", str(ready)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # survives the caller's Ctrl-C
        )
    _children[process.pid] = process
    state = _wait_until_ready(process, ready, log, timeout_s)
    deployment = LocalDeployment(name, str(bundle), process.pid, "127.0.0.1", state["grpc_port"], state["http_port"])
    (folder / "state.json").write_text(json.dumps(asdict(deployment)), encoding="utf-8")
    return deployment


def _wait_until_ready(process: subprocess.Popen[bytes], ready: Path, log: Path, timeout_s: float) -> dict[str, Any]:
    from local_runner import ready_file
    from local_runner.process import failure, tail

    deadline = time.monotonic() + timeout_s
    while (state := ready_file.read(ready)).get("state") != "ready":
        ended = process.poll()
        if state.get("state") == "failed":
            raise failure(state)
        if ended is not None and not ready_file.read(ready):
            why = tail(log.read_text(encoding="utf-8", errors="replace"))
            raise RunnerFailed(f"The local runner ended with exit code {ended}: {why}")
        if time.monotonic() > deadline:
            process.terminate()
            raise RunnerFailed(f"The local runner was not ready after {timeout_s:g} s.", f"Its log is {log}.")
        time.sleep(0.05)
    return state


def _read(name: str) -> LocalDeployment | None:
    """The deployment, if its process is alive."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        deployment = LocalDeployment(**json.loads((home() / name / "state.json").read_text(encoding="utf-8")))
        if _alive(deployment.pid):
            return deployment
    return None


def _alive(pid: int) -> bool:
    """Whether the process runs; reaps it when it is a finished child of ours."""
    if pid in _children and _children[pid].poll() is not None:
        del _children[pid]
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def find(name: str) -> LocalDeployment:
    """The running deployment of that name; raises UnknownDeployment."""
    deployment = _read(check_name(name))
    if deployment is None:
        running = sorted(entry.name for entry in home().glob("*") if _read(entry.name)) if home().is_dir() else []
        hint = f"Running: {', '.join(running)}." if running else "Nothing is deployed on this machine."
        raise UnknownDeployment(f"There is no running deployment {name!r}.", hint)
    return deployment


def client(name: str) -> "Client":
    """A synchronous client of a running deployment; it also works inside a running event loop."""
    from local_runner.client import Client

    deployment = find(name)
    return Client(f"{deployment.host}:{deployment.grpc_port}")


def async_client(name: str) -> "AsyncClient":
    """An asynchronous client of a running deployment."""
    from local_runner.client import AsyncClient

    deployment = find(name)
    return AsyncClient(f"{deployment.host}:{deployment.grpc_port}")


def terminate(name: str) -> None:
    """Stop a deployment, letting it finish what it accepted, and remove its files; raises UnknownDeployment."""
    deployment = find(name)
    os.kill(deployment.pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while _alive(deployment.pid):
        if time.monotonic() > deadline:
            os.kill(deployment.pid, signal.SIGKILL)
            deadline = float("inf")
        time.sleep(0.05)
    shutil.rmtree(home() / name, ignore_errors=True)
