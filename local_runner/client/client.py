"""Clients of a runner over gRPC, synchronous and asynchronous, with deadlines and retries on UNAVAILABLE only.

The synchronous client blocks its thread and needs no event loop, so it also works where a loop is already running
(Jupyter, FastAPI). Both raise the errors of `scoring.errors` and `mii_azure.errors`, rebuilt from the server's code.
"""

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any, Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from local_runner.access.credentials import Credentials
from local_runner.errors import RunnerFailed
from local_runner.protocol import errors
from local_runner.protocol.addresses import read_host_port
from local_runner.protos import scoring_pb2, scoring_pb2_grpc
from scoring.errors import InvalidInput

TIMEOUT_S = 60.0
_READY_TIMEOUT_S = 5.0
_SERVICE = scoring_pb2.DESCRIPTOR.services_by_name["Scoring"].full_name
_RETRY = {
    "methodConfig": [
        {
            "name": [{"service": _SERVICE}],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.1s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}


def channel_options(address: str, retry: bool = True) -> list[tuple[str, Any]]:
    """gRPC channel options for `address`; no proxy is used for the local machine."""
    options: list[tuple[str, Any]] = [
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", -1),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.enable_retries", int(retry)),
    ]
    if retry:
        options.append(("grpc.service_config", json.dumps(_RETRY)))
        # A request above this size would silently not be retried.
        options.append(("grpc.per_rpc_retry_buffer_size", 64 << 20))
    if address.rsplit(":", 1)[0] in ("127.0.0.1", "localhost", "[::1]"):
        options.append(("grpc.enable_http_proxy", 0))
    return options


def _check(address: str) -> None:
    """Raise RunnerFailed for an address that gRPC might resolve to another host than a person would."""
    try:
        read_host_port(address)
    except ValueError as error:
        raise RunnerFailed(f"{address!r} gets no key: {error}.", "Give HOST:PORT of the runner's gRPC side.") from None


class _Calls:
    """Shared parts of both clients: requests, stubs, and the translation of failures."""

    def __init__(self, address: str, credentials: Credentials | None, asynchronous: bool) -> None:
        self.address = address
        credentials = credentials or Credentials()
        if credentials.api_key:
            _check(address)
        channel = credentials.channel(address, channel_options(address), asynchronous)
        self._metadata = credentials.metadata()
        self._channel = channel
        self._stub = scoring_pb2_grpc.ScoringStub(channel)
        self._health = health_pb2_grpc.HealthStub(channel)

    def _request(self, payload: Any) -> Any:
        try:
            return scoring_pb2.ScoreRequest(json=json.dumps(payload, ensure_ascii=False, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise InvalidInput(f"The payload is not JSON: {error}.", "Send plain values, and no NaN.") from error

    def _stream_request(self, payload: dict[str, Any]) -> Any:
        errors.check_streamed(payload)
        return self._request({**payload, "stream": True})

    @contextmanager
    def _translated(self, timeout: float) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as error:
            raise errors.error_of(error, self.address, timeout) from error


class Client(_Calls):
    """Synchronous client of the runner at `address` ("host:port"); a context manager, safe to share between threads."""

    def __init__(self, address: str, credentials: Credentials | None = None) -> None:
        super().__init__(address, credentials, asynchronous=False)

    def query(self, payload: Any, timeout: float = TIMEOUT_S) -> Any:
        """Send one request and return its answer; `timeout` in seconds includes retries."""
        with self._translated(timeout):
            return errors.read_answer(
                self._stub.Score(self._request(payload), timeout, self._metadata).json, self.address
            )

    def stream(self, payload: dict[str, Any], timeout: float = TIMEOUT_S) -> Iterator[dict[str, Any]]:
        """Yield the events of a streamed answer as they arrive; leaving the iterator early cancels the work."""
        with self._translated(timeout):
            call = self._stub.ScoreStream(self._stream_request(payload), timeout=timeout, metadata=self._metadata)
            try:
                for event in call:
                    yield errors.read_answer(event.json, self.address)
            finally:
                call.cancel()

    def metadata(self, timeout: float = TIMEOUT_S) -> dict[str, Any]:
        """Metadata of the deployment: name, task, model, versions, device, limits."""
        with self._translated(timeout):
            reply = self._stub.Metadata(scoring_pb2.MetadataRequest(), timeout=timeout, metadata=self._metadata)
            facts: dict[str, Any] = errors.read_answer(reply.json, self.address)
            return facts

    def ready(self, timeout: float = _READY_TIMEOUT_S) -> bool:
        """Return True if a request sent now would be scored; False also if nothing answers."""
        try:
            reply = self._health.Check(health_pb2.HealthCheckRequest(), timeout=timeout)
        except grpc.RpcError:
            return False
        return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)

    def close(self) -> None:
        """Close the connection; calls in flight are cancelled."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class AsyncClient(_Calls):
    """Asynchronous client, with the same methods; create it inside the loop that uses it."""

    def __init__(self, address: str, credentials: Credentials | None = None) -> None:
        super().__init__(address, credentials, asynchronous=True)

    async def query(self, payload: Any, timeout: float = TIMEOUT_S) -> Any:
        """Send one request and return its answer; `timeout` in seconds includes retries."""
        with self._translated(timeout):
            call = self._stub.Score(self._request(payload), timeout=timeout, metadata=self._metadata)
            return errors.read_answer((await call).json, self.address)

    async def stream(self, payload: dict[str, Any], timeout: float = TIMEOUT_S) -> AsyncIterator[dict[str, Any]]:
        """Yield the events of a streamed answer as they arrive; leaving the iterator early cancels the work."""
        with self._translated(timeout):
            call = self._stub.ScoreStream(self._stream_request(payload), timeout=timeout, metadata=self._metadata)
            try:
                async for event in call:
                    yield errors.read_answer(event.json, self.address)
            finally:
                call.cancel()

    async def metadata(self, timeout: float = TIMEOUT_S) -> dict[str, Any]:
        """Metadata of the deployment: name, task, model, versions, device, limits."""
        with self._translated(timeout):
            reply = await self._stub.Metadata(scoring_pb2.MetadataRequest(), timeout=timeout, metadata=self._metadata)
            facts: dict[str, Any] = errors.read_answer(reply.json, self.address)
            return facts

    async def ready(self, timeout: float = _READY_TIMEOUT_S) -> bool:
        """Return True if a request sent now would be scored; False also if nothing answers."""
        try:
            reply = await self._health.Check(health_pb2.HealthCheckRequest(), timeout=timeout)
        except grpc.RpcError:
            return False
        return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)

    async def close(self) -> None:
        """Close the connection; calls in flight are cancelled."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()
