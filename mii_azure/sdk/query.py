"""Request to a bundle, or to any deployment that `mii_azure.client` reaches."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mii_azure.errors import NotABundle

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
    if Path(target).is_dir():
        from local_runner.process.launch import LOOPBACK, Runner

        with Runner(Path(target)) as runner:
            yield from _ask(f"{LOOPBACK}:{runner.grpc_port}", payload, stream, timeout)
    else:
        yield from _ask(target, payload, stream, timeout, credentials)


def _client(target: str, credentials: "Credentials | None") -> "Client | EndpointClient":
    from mii_azure.errors import SpecError, UnknownDeployment
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


def _ask(
    target: str, payload: Any, stream: bool, timeout: float, credentials: "Credentials | None" = None
) -> Iterator[Any]:
    with _client(target, credentials) as client:
        if not stream:
            yield client.query(payload, timeout=timeout)
            return
        for event in client.stream(payload, timeout=timeout):
            token = event.get("token") if isinstance(event, dict) else None
            if isinstance(token, dict):
                yield str(token.get("text", ""))
        yield "\n"
