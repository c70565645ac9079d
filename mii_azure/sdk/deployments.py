"""MII's deploy, client and terminate: local deployments by name, and the way to those in Azure."""

import contextlib
import logging
import os
import subprocess
import sys
import time
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from local_runner.protocol.addresses import read_host_port
from mii_azure.bundle import folders
from mii_azure.errors import RunnerFailed, SpecError, UnknownDeployment
from mii_azure.platform.target_names import ENDPOINT
from mii_azure.sdk import deployment_records, processes
from mii_azure.sdk.deployment_records import LocalDeployment, home, locked
from mii_azure.sdk.narration import Progress, narrated
from mii_azure.spec import Preferences, check_name, one_name

if TYPE_CHECKING:
    from local_runner.access.credentials import Credentials
    from local_runner.client.client import AsyncClient, Client
    from mii_azure.operations.deploy import AzureDeployment
    from mii_azure.sdk.endpoint_client import EndpointClient

logger = logging.getLogger(__name__)

# What a deployment leaves in its folder beside its bundle.
_FILES = ("ready.json", "runner.log", deployment_records.STATE)
SCHEMES = (ENDPOINT, "http://", "https://")
START_TIMEOUT_S = 600.0
# Runners that this process started; they outlive it, and until then it must reap them.
_children: dict[int, "subprocess.Popen[bytes]"] = {}
STOP_TIMEOUT_S = 40.0  # longer than the runner's own drain budget
_REAP_S = 1.0  # for a child that is ending to have ended
_GIVE_UP_S = 10.0  # longer than a runner takes that is let down while it starts


class DeploymentType(Enum):
    """Place in which a deployment runs."""

    LOCAL = "local"
    AML = "aml"


def deploy(
    task: str | Path | None = None,
    model: str | None = None,
    name: str | None = None,
    deployment_type: DeploymentType | None = None,
    *,
    bundle: str | Path | None = None,
    ml_client: Any = None,
    slot: str = "blue",
    traffic: int | None = None,
    subscription: str | None = None,
    resource_group: str | None = None,
    workspace: str | None = None,
    timeout_s: float = START_TIMEOUT_S,
    progress: Progress | None = None,
    deployment_name: str | None = None,
    **preferences: Unpack[Preferences],
) -> "LocalDeployment | AzureDeployment":
    """Bring a bundle, or a model for a task, to Azure ML or onto this machine.

    `deploy(bundle, ml_client=client, slot="blue")` deploys a folder that `generate` wrote. `deploy(task, model, name)`
    is MII's call: generate, then serve here until `terminate`, or with DeploymentType.AML deploy to Azure;
    `preferences` are those of `generate`. Without `ml_client` the workspace is named, by argument or by
    MII_AZURE_WORKSPACE and its siblings. `progress` is called with what goes on; without it that is printed where
    somebody watches. Raises what generation raises, RunnerFailed when the runner does not become
    ready, AzureError from Azure.
    """
    if bundle is None and task is not None and model is None:
        bundle, task = task, None
    if bundle is not None:
        if model or task or deployment_type is DeploymentType.LOCAL:
            raise SpecError("A bundle is deployed to Azure.", "Serve it here with `mii-azure serve BUNDLE`.")
        folder = Path(bundle)
    else:
        if not task or not model or not (name or deployment_name):
            raise SpecError("deploy needs a bundle, or task, model and name.", "Name all three.")
        name = one_name(name, deployment_name)
        if deployment_type is not DeploymentType.AML:
            return _deploy_here(str(task), model, name, timeout_s, narrated(progress), preferences)
    from mii_azure.azure.client import connect
    from mii_azure.operations.deploy import deploy as to_azure

    client = ml_client or connect(subscription, resource_group, workspace)
    if bundle is None:
        folder = _generate(str(task), str(model), str(name), preferences)
    return to_azure(folder, client, slot, traffic, narrated(progress))


def _deploy_here(
    task: str, model: str, name: str, timeout_s: float, tell: Progress, preferences: Preferences
) -> LocalDeployment:
    with locked(check_name(name)):
        try:
            running = _running(name)
        except UnknownDeployment as error:
            logger.warning("%s It has been removed, and nothing was signalled.", error.message)
            deployment_records.remove(name)
            running = None
        if running is not None:
            raise RunnerFailed(
                f"The deployment {name!r} is running already.",
                f"Call mii_azure.terminate({name!r}) first.",
            )
        tell(f"writing the bundle of {name}")
        bundle = _generate(task, model, name, preferences)
        tell(f"starting {name}: the model is loaded, and its passes are verified")
        started = _start(name, bundle, (home() / name).resolve(), timeout_s)
        tell(f"{name} answers at {started.host}:{started.grpc_port} (gRPC) and :{started.http_port} (HTTP)")
        return started


def _generate(task: str, model: str, name: str, preferences: Preferences) -> Path:
    """The bundle of a deployment by name, below `home()`; the same model gives the same bytes, so a rerun goes on."""
    from mii_azure.sdk.generate import generate

    return generate(task, model, name, output=home() / check_name(name) / "bundle", force=True, **preferences)


def _start(name: str, bundle: Path, folder: Path, timeout_s: float) -> LocalDeployment:
    """A recorded runner; one that does not get so far ends, also where this process ends before it does."""
    from local_runner.process import leash

    ready, log = folder / "ready.json", folder / "runner.log"
    ready.unlink(missing_ok=True)
    command = [sys.executable, "-m", "local_runner", str(bundle), "--grpc-port", "0", "--http-port", "0"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--ready-file", str(ready)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **leash.ENVIRONMENT},
            cwd=folder,  # what lies in the caller's is not imported
            start_new_session=True,  # survives the caller's Ctrl-C
        )
    try:
        state = _wait_until_ready(process, ready, log, timeout_s)
        deployment = _record(name, bundle, process.pid, state)
        leash.let_go(process)
    except BaseException:
        _give_up(process)
        deployment_records.remove(name)
        raise
    _children[process.pid] = process
    return deployment


def _record(name: str, bundle: Path, pid: int, state: dict[str, Any]) -> LocalDeployment:
    known = processes.look(pid)
    if known is None:
        raise RunnerFailed("The local runner ended as soon as it was ready.")
    ports = state["grpc_port"], state["http_port"]
    deployment = LocalDeployment(name, str(bundle), pid, "127.0.0.1", *ports, known.started, known.command)
    deployment_records.write(deployment)
    return deployment


def _give_up(process: subprocess.Popen[bytes]) -> None:
    """End a runner that was never recorded; interrupted here, it ends all the same, since nothing holds it now."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(_GIVE_UP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], ready: Path, log: Path, timeout_s: float) -> dict[str, Any]:
    from local_runner.process import ready_file
    from local_runner.process.launch import failure, tail

    deadline = time.monotonic() + timeout_s
    while (state := ready_file.read(ready)).get("state") != "ready":
        ended = process.poll()
        if state.get("state") == "failed":
            raise failure(state)
        if ended is not None and not ready_file.read(ready):
            why = tail(log.read_text(encoding="utf-8", errors="replace"))
            raise RunnerFailed(f"The local runner ended with exit code {ended}: {why}")
        if time.monotonic() > deadline:
            raise RunnerFailed(f"The local runner was not ready after {timeout_s:g} s.", f"Its log is {log}.")
        time.sleep(0.05)
    return state


def _running(name: str) -> LocalDeployment | None:
    """The deployment, if its process runs; raises UnknownDeployment where the record cannot be read."""
    deployment = deployment_records.read(name)
    return deployment if deployment and alive(deployment) else None


def alive(deployment: LocalDeployment) -> bool:
    """Return True while the process that was started runs; reaps it when it is a finished child of ours."""
    alive = processes.running(deployment.process)
    child = _children.get(deployment.pid)
    if not alive and child is not None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(_REAP_S)
            _children.pop(deployment.pid, None)
    return alive


def _names() -> list[str]:
    """Names of all deployments that run here."""
    found = []
    for entry in home().glob("*"):
        with contextlib.suppress(UnknownDeployment):
            found += [entry.name] if _running(entry.name) else []
    return sorted(found)


def find(name: str) -> LocalDeployment:
    """The running deployment of that name; raises UnknownDeployment."""
    deployment = _running(check_name(name))
    if deployment is None:
        running = _names()
        hint = f"Running: {', '.join(running)}." if running else "Nothing is deployed on this machine."
        raise UnknownDeployment(f"There is no running deployment {name!r}.", hint)
    return deployment


def client(
    name: str,
    credentials: "Credentials | None" = None,
    *,
    ml_client: Any = None,
    subscription: str | None = None,
    resource_group: str | None = None,
    workspace: str | None = None,
) -> "Client | EndpointClient":
    """A synchronous client of whatever answers; it also works inside a running event loop.

    `name` is a deployment on this machine; the HOST:PORT of a gRPC server; `endpoint:NAME` or `endpoint:NAME/SLOT` in
    Azure, whose key or token is fetched through the workspace, named as for `deploy`; or a scoring URL, where a key in
    `credentials` is sent, or to Azure a token of whoever is signed in. Raises UnknownDeployment, SpecError, AzureError.
    """
    if name.startswith(SCHEMES):
        from mii_azure.sdk import endpoint_client

        if not name.startswith(ENDPOINT):
            return endpoint_client.of_url(name, credentials)
        from mii_azure.azure.client import connect

        return endpoint_client.of_endpoint(name, ml_client or connect(subscription, resource_group, workspace))
    from local_runner.client.client import Client

    return Client(_address(name), credentials)


def async_client(name: str, credentials: "Credentials | None" = None) -> "AsyncClient":
    """An asynchronous client of a deployment on this machine, or of the gRPC server at HOST:PORT."""
    from local_runner.client.client import AsyncClient

    return AsyncClient(_address(name), credentials)


def _address(name: str) -> str:
    """Address of a gRPC server, given as HOST:PORT or as a deployment's name; raises UnknownDeployment."""
    with contextlib.suppress(ValueError):
        read_host_port(name)
        return name
    deployment = find(name)
    return f"{deployment.host}:{deployment.grpc_port}"


def terminate(name: str) -> None:
    """Stop a deployment, letting it finish what it accepted, and remove its own files.

    Only the process that was started is ever signalled. Raises UnknownDeployment for one that does not run, whose files
    are removed all the same, and RunnerFailed where another call starts or stops it, or where even SIGKILL does not end
    it within 10 s.
    """
    with locked(check_name(name)):
        try:
            recorded = deployment_records.read(name)
        except UnknownDeployment as error:
            deployment_records.remove(name)
            raise UnknownDeployment(
                error.message, "The record has been removed, and nothing was signalled; see `ps` for a runner."
            ) from error
        deployment = find(name) if recorded is None or alive(recorded) else None
        if deployment and not processes.end(deployment.process, STOP_TIMEOUT_S):
            raise RunnerFailed(
                f"The runner of {name!r}, pid {deployment.pid}, has not ended after SIGKILL.",
                "It waits for the system or a device; its files are kept. Call terminate again later.",
            )
        _remove_files(home() / name)
    if deployment is None:
        raise UnknownDeployment(f"The deployment {name!r} had ended by itself.", "Its files have been removed.")
    if child := _children.pop(deployment.pid, None):
        child.wait(_GIVE_UP_S)  # reaped


def _remove_files(folder: Path) -> None:
    """Remove what a deployment left, and its bundle; nothing else that may lie in the folder."""
    for file in _FILES:
        (folder / file).unlink(missing_ok=True)
    folders.remove(folder / "bundle")
    folders.remove_empty(folder)
