"""Errors over gRPC: the mapping in both directions, written once.

The status code is the error class's own; the status message is its sentence; the JSON body and the HTTP status from the
scoring script travel as trailing metadata, so that a client rebuilds the same error.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from local_runner.errors import ModelNotServed, RunnerFailed, Unauthenticated
from scoring.errors import (
    InternalError,
    InvalidInput,
    MiiAzureError,
    NotReady,
    Overloaded,
    PayloadTooLarge,
    RequestError,
    RequestTimeout,
)

if TYPE_CHECKING:
    import grpc  # imported lazily, since a container that serves only HTTP has no gRPC

_TLS_FAILURE = re.compile(r"(?:OPENSSL_internal|handshake failed): *(?!SSL_ERROR)([A-Za-z_ ]+(?:: [a-z -]+)?)")
METADATA_BODY = '{"mii_azure": "metadata"}'
ERROR_KEY = "mii-azure-error-bin"
DONE = "[DONE]"
STATUS_KEY = "mii-azure-status"
RETRY_KEY = "retry-after"
# gRPC peers refuse metadata above 8 KiB unless configured otherwise.
_MAX_BODY = 4096
_MAX_SENTENCE = 1024

_GRPC_STATUS = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    404: "NOT_FOUND",
    413: "RESOURCE_EXHAUSTED",
    429: "RESOURCE_EXHAUSTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
_CLASS_OF_STATUS: Mapping[int, type[MiiAzureError]] = {
    400: RequestError,
    401: Unauthenticated,
    404: ModelNotServed,
    413: PayloadTooLarge,
    429: Overloaded,
    503: NotReady,
    504: RequestTimeout,
}


def grpc_status(http_status: int) -> "grpc.StatusCode":
    """gRPC status for the HTTP status of a scoring script's answer."""
    import grpc

    return grpc.StatusCode[_GRPC_STATUS.get(http_status, "INTERNAL")]


def body_of(error: MiiAzureError) -> bytes:
    """JSON body of `error`, as every host writes it."""
    return json.dumps(error.to_dict(), ensure_ascii=False).encode(errors="replace")


def trailers(status: int, headers: Mapping[str, str], body: bytes) -> tuple[str, tuple[tuple[str, Any], ...]]:
    """Status message and trailing metadata of a failure; over-long text is cut, never refused."""
    fields = _fields(body)
    sentence = fields.get("message", "")[:_MAX_SENTENCE]
    if len(body) > _MAX_BODY:
        short = {key: value[: _MAX_SENTENCE // 4] for key, value in fields.items()}
        body = json.dumps({"error": short}, ensure_ascii=False).encode()
    pairs: list[tuple[str, Any]] = [(ERROR_KEY, body), (STATUS_KEY, str(status))]
    retry = {key.lower(): value for key, value in headers.items()}.get(RETRY_KEY)
    if retry:
        pairs.append((RETRY_KEY, retry))
    return sentence, tuple(pairs)


def reply_of(error: "grpc.RpcError", address: str, timeout: float | None) -> tuple[int, bytes]:
    """HTTP status and JSON body that a failed call stands for."""
    found = dict(error.trailing_metadata() or ())
    if ERROR_KEY in found:
        return int(found[STATUS_KEY]), bytes(found[ERROR_KEY])
    rebuilt = error_of(error, address, timeout)
    return rebuilt.http_status, body_of(rebuilt)


def error_of(error: "grpc.RpcError", address: str, timeout: float | None) -> MiiAzureError:
    """Error that a failed call stands for: the server's own, or that of the transport."""
    found = dict(error.trailing_metadata() or ())
    if ERROR_KEY in found:
        return error_from_body(bytes(found[ERROR_KEY]), int(found[STATUS_KEY]), str(found.get(RETRY_KEY, "1")))
    code, details = error.code().name, error.details() or ""
    if code == "DEADLINE_EXCEEDED":
        return RequestTimeout(f"No answer from {address} within {timeout} s.", "Ask with a longer timeout.")
    if code == "RESOURCE_EXHAUSTED" and "larger than max" in details:
        return PayloadTooLarge("The request is larger than this server takes.", "Send it in parts.")
    if code == "UNAVAILABLE":
        if tls := _TLS_FAILURE.search(details):
            return RunnerFailed(
                f"No TLS connection to {address}: {tls[1].strip()}.", "Check certificates on both sides."
            )
        return RunnerFailed(f"No runner answers at {address}.", "Start one with `mii-azure serve BUNDLE`.")
    if code == "CANCELLED":
        return RunnerFailed(f"The runner at {address} ended the call: it is stopping.", "Send it again.")
    return InternalError(f"The call to {address} failed: {code} {details}".strip())


def error_from_body(body: bytes, status: int, retry_after: str = "1") -> MiiAzureError:
    """Rebuild an error from the JSON body of a host's answer; an unknown code becomes the status's class."""
    fields = _fields(body)
    default = _CLASS_OF_STATUS.get(status, InternalError)
    known = {cls.code: cls for cls in _tree(MiiAzureError)}
    cls = known.get(fields.get("code", ""), default)
    error = cls(fields.get("message") or f"The server answered {status}.", fields.get("hint", ""))
    error.where = fields.get("where", "")
    if isinstance(error, Overloaded) and retry_after.isdigit():
        error.retry_after_s = int(retry_after)
    return error


def failure_of(answer: Any) -> MiiAzureError:
    """Error that a script's `Answer` of status 400 or more stands for."""
    retry = {key.lower(): value for key, value in answer.headers.items()}.get(RETRY_KEY, "1")
    return error_from_body(answer.read(), answer.status, retry)


def check_streamed(payload: Any) -> None:
    """Raise InvalidInput for a request that cannot carry `stream`."""
    if not isinstance(payload, dict):
        raise InvalidInput("A request for a stream is an object.", 'It looks like {"inputs": "..."}.')


def read_answer(text: str | bytes, address: str) -> Any:
    """Parse the JSON of an answer; raises RunnerFailed if it is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise RunnerFailed(f"What {address} answered is not JSON.", "Check that a scoring server is there.") from None


class EventParser:
    """Splits server-sent events into their data, however the bytes arrive; the closing `[DONE]` is dropped."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> Iterator[str]:
        """Yield the events that `chunk` completes; raises the error that one of them reports."""
        *whole, self._rest = (self._rest + chunk).split(b"\n\n")
        for event in whole:
            data = event.removeprefix(b"data: ").decode(errors="replace")
            if data.startswith('{"error"'):
                raise error_from_body(data.encode(), 500)
            if data != DONE:
                yield data


def _fields(body: bytes) -> dict[str, str]:
    try:
        fields = json.loads(body)["error"]
        return {key: str(value) for key, value in fields.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {"code": "internal", "message": body.decode(errors="replace")[:_MAX_SENTENCE]}


def _tree(cls: type[MiiAzureError]) -> Iterator[type[MiiAzureError]]:
    yield cls
    for child in cls.__subclasses__():
        yield from _tree(child)
