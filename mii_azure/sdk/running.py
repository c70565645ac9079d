"""Runners on this machine: deployments by name, and processes of `mii-azure serve`."""

import contextlib
import json
import time
from collections.abc import Sequence
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from local_runner.process.launch import LOOPBACK
from mii_azure.errors import RunnerFailed, UnknownDeployment
from mii_azure.sdk import deployment_records, processes
from mii_azure.sdk.deployments import STOP_TIMEOUT_S, alive, terminate
from scoring.config import Deployment
from scoring.errors import MiiAzureError

_MODULE = ["-m", "local_runner"]
_ASKED_S = 1.0  # for a runner to say what it serves
_MOST_BYTES = 1 << 20  # of what it says


class Running(BaseModel):
    """Runner process; ports are those that it listens on, none while it loads."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str  # of its deployment
    task: str
    pid: int
    ports: tuple[int, ...]
    seconds: float  # since its start
    bundle: str
    deployed: bool  # by `deploy`, which keeps a record of it
    adapters: tuple[str, ...] = ()  # beside the model: those served now, or, of a runner with keys, its bundle's


def running() -> list[Running]:
    """Runners of this user on this machine, the oldest first."""
    import psutil

    records = {record.pid: record for record in _records()}
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            bundle = _bundle(process)
            if bundle is not None and not _is_part(process):
                found.append(_described(process, bundle, records.get(process.pid)))
    return sorted(found, key=lambda each: -each.seconds)


def stop(which: str) -> Running:
    """Stop a runner by its deployment's name or its pid, letting it finish what it accepted; return what it was.

    Raises UnknownDeployment, with what runs, and RunnerFailed where even SIGKILL does not end it.
    """
    there = running()
    named = [each for each in there if which in (each.name, str(each.pid))]
    if len(named) > 1:
        pids = ", ".join(str(each.pid) for each in named)
        raise UnknownDeployment(f"{len(named)} runners have the name {which!r}.", f"Stop one by its pid: {pids}.")
    if not named:
        told = ", ".join(f"{each.name} ({each.pid})" for each in there)
        raise UnknownDeployment(f"No runner here is {which!r}.", f"Running: {told}." if told else "Nothing runs here.")
    (one,) = named
    known = processes.look(one.pid)
    if one.deployed:
        terminate(one.name)
    elif known is not None and not processes.end(known, STOP_TIMEOUT_S):
        raise RunnerFailed(f"Process {one.pid} has not ended after SIGKILL.", "It waits for the system or a device.")
    return one


def _records() -> list[deployment_records.LocalDeployment]:
    found = []
    for entry in deployment_records.home().glob("*"):
        with contextlib.suppress(UnknownDeployment):
            record = deployment_records.read(entry.name)
            found += [record] if record and alive(record) else []
    return found


def _bundle(process: Any) -> Path | None:
    """Bundle that a process serves, by its command line; None if it is no runner, or another user's."""
    words = process.cmdline()
    at = next((place for place in range(1, len(words) - 2) if words[place : place + 2] == _MODULE), 0)
    if not at or processes.look(process.pid) is None:
        return None
    folder = Path(words[at + 2])
    return folder if folder.is_absolute() else Path(process.cwd()) / folder


def _is_part(process: Any) -> bool:
    """True for a process that another runner started."""
    parent = process.parent()
    return parent is not None and _bundle(parent) is not None


def _described(process: Any, bundle: Path, record: deployment_records.LocalDeployment | None) -> Running:
    import psutil

    name, task = bundle.name, ""
    adapters: tuple[str, ...] = ()
    with contextlib.suppress(MiiAzureError, OSError):
        deployment = Deployment.read(bundle / "code" / "deployment.json")
        name, task, adapters = deployment.name, deployment.task, deployment.beside
    connections = process.net_connections(kind="inet")
    ports = {each.laddr.port for each in connections if each.status == psutil.CONN_LISTEN}
    told = _told_adapters(sorted(ports)) if ports else None
    return Running(
        name=record.name if record else name,
        task=task,
        pid=process.pid,
        ports=tuple(sorted(ports)),
        seconds=time.time() - process.create_time(),
        bundle=str(bundle),
        deployed=record is not None,
        adapters=adapters if told is None else told,
    )


def _told_adapters(ports: Sequence[int]) -> tuple[str, ...] | None:
    """Adapters that a runner says it serves now; None if it tells nobody without a key, or is no HTTP server."""
    for port in ports:
        with (
            contextlib.suppress(OSError, HTTPException, ValueError, TypeError, KeyError),
            contextlib.closing(HTTPConnection(LOOPBACK, port, timeout=_ASKED_S)) as connection,
        ):
            connection.request("GET", "/v1/models")
            answer = connection.getresponse()
            content = answer.read(_MOST_BYTES)
            if answer.status == HTTPStatus.OK:
                return tuple(str(each["id"]) for each in json.loads(content)["data"] if "parent" in each)
    return None
