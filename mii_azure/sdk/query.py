"""Request to a bundle, or to any deployment that `mii_azure.client` reaches."""

import contextlib
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mii_azure.errors import NotABundle, RunnerFailed, SpecError
from mii_azure.sdk import typed_request

_LOOK_S = 1.0

if TYPE_CHECKING:
    from local_runner.access.credentials import Credentials
    from local_runner.client.client import Client
    from mii_azure.sdk.endpoint_client import EndpointClient


def query(
    target: str,
    payload: Any,
    stream: bool = False,
    timeout: float = 120.0,
    credentials: "Credentials | None" = None,
) -> Iterator[Any]:
    """Yield the answer, or with `stream` the pieces of text as they come and then a line break.

    A bundle is loaded for this one request; anything else that `mii_azure.client` takes is sent it, with `credentials`.
    """
    with reached(target, credentials, brief=True) as client:
        if not stream:
            yield client.query(payload, timeout=timeout)
            return
        yield from texts(client.stream(payload, timeout=timeout))
        yield "\n"


@contextlib.contextmanager
def reached(
    target: str,
    credentials: "Credentials | None" = None,
    brief: bool = False,
    progress: Callable[[str], None] = lambda text: None,
) -> Iterator["Client | EndpointClient"]:
    """Client of what answers at `target`; a bundle is served while it is open, with `brief` without timing passes."""
    with contextlib.ExitStack() as stack:
        if Path(target).is_dir():
            from local_runner.process.launch import LOOPBACK, Runner
            from scoring.passes.runner import BRIEF

            progress(f"starting {target}")
            runner = stack.enter_context(Runner(Path(target), environment={BRIEF: "1"} if brief else {}))
            target = f"{LOOPBACK}:{runner.grpc_port}"
        client = _client(target, credentials)
        stack.callback(client.close)
        try:
            yield client
        except RunnerFailed:
            _refuse_http(target)
            raise


def task_of(client: "Client | EndpointClient", timeout: float = 30.0) -> str:
    """Task that a deployment serves; raises SpecError where it does not say."""
    task = client.metadata(timeout=timeout).get("task")
    if not isinstance(task, str):
        raise SpecError("What answers there does not say which task it has.", "Send the request as JSON.")
    return task


def bundle_task(target: str) -> str | None:
    """Task of the bundle at `target`, if it is one."""
    from scoring.config import Deployment

    settings = Path(target) / "code" / "deployment.json"
    return Deployment.read(settings).task if settings.is_file() else None


def early_payload(words: Sequence[str], target: str) -> Any:
    """Request that was typed, if no server has to be asked for its task; None if one has to."""
    text = typed_request.json_of(words)
    if text is not None:
        return typed_request.read_json(text)
    task = bundle_task(target)
    return typed_request.payload_of(words, task) if task else None


def texts(events: Iterator[dict[str, Any]]) -> Iterator[str]:
    """Pieces of text in the events of a streamed answer."""
    for event in events:
        token = event.get("token") if isinstance(event, dict) else None
        if isinstance(token, dict):
            yield str(token.get("text", ""))


def _client(target: str, credentials: "Credentials | None") -> "Client | EndpointClient":
    from mii_azure.errors import UnknownDeployment
    from mii_azure.sdk.deployments import SCHEMES, client

    if target.startswith(SCHEMES):
        return client(target, credentials)
    try:
        return client(target, credentials)
    except (UnknownDeployment, SpecError) as error:
        raise NotABundle(
            f"{target!r} is no folder, no HOST:PORT, no URL, and no running deployment.",
            error.hint or "Check the path.",
        ) from None


def _refuse_http(target: str) -> None:
    """Raise SpecError for the HOST:PORT of an HTTP server, of which gRPC would only say that nobody answers."""
    from local_runner.protocol.addresses import read_host_port

    try:
        host, port = read_host_port(target)
    except ValueError:
        return
    with contextlib.suppress(OSError), socket.create_connection((host.strip("[]"), port), _LOOK_S) as connection:
        connection.settimeout(_LOOK_S)
        # Not HTTP/2, so a gRPC server closes the connection or says nothing that begins so.
        connection.sendall(f"HEAD /readyz HTTP/1.1\r\nHost: {target}\r\nConnection: close\r\n\r\n".encode())
        if connection.recv(7).startswith(b"HTTP/1."):
            raise SpecError(
                f"{target} speaks HTTP, and HOST:PORT is asked over gRPC.",
                f"Ask http://{target}/score, or the gRPC port (50051 unless told).",
            )
