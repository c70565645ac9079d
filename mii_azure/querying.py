"""One request to a bundle, an address or a local deployment."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mii_azure.errors import NotABundle

if TYPE_CHECKING:
    from local_runner.credentials import Credentials

_ADDRESS = re.compile(r"^[\w.\-\[\]:]+:\d+$")


def query(
    target: str,
    payload: Any,
    stream: bool = False,
    timeout: float = 120.0,
    credentials: "Credentials | None" = None,
) -> Iterator[Any]:
    """Yield the answer, or with `stream` the pieces of text as they come and then a line break.

    A bundle is loaded for this one request; an address or a deployment's name is asked over gRPC, with `credentials`.
    """
    if _ADDRESS.match(target):
        yield from _ask(target, payload, stream, timeout, credentials)
    elif Path(target).is_dir():
        from local_runner.process import LOOPBACK, Runner

        with Runner(Path(target)) as runner:
            yield from _ask(f"{LOOPBACK}:{runner.grpc_port}", payload, stream, timeout)
    else:
        yield from _ask(_deployed(target), payload, stream, timeout, credentials)


def _deployed(name: str) -> str:
    from mii_azure.deployments import find
    from mii_azure.errors import MiiAzureError

    try:
        deployment = find(name)
    except MiiAzureError as error:
        raise NotABundle(
            f"{name!r} is no folder, no HOST:PORT, and no running deployment.", error.hint or "Check the path."
        ) from None
    return f"{deployment.host}:{deployment.grpc_port}"


def _ask(
    address: str, payload: Any, stream: bool, timeout: float, credentials: "Credentials | None" = None
) -> Iterator[Any]:
    from local_runner.client import Client

    with Client(address, credentials) as client:
        if not stream:
            yield client.query(payload, timeout=timeout)
            return
        for event in client.stream(payload, timeout=timeout):
            if "token" in event:
                yield event["token"]["text"]
        yield "\n"
