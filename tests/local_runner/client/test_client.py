"""The clients, against a real runner and against a server that fails on purpose."""

import asyncio
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from local_runner.client.client import AsyncClient, Client
from local_runner.process.launch import Runner
from local_runner.protos import scoring_pb2, scoring_pb2_grpc
from mii_azure.errors import RunnerFailed
from mii_azure.sdk.endpoint_client import EndpointClient
from scoring.errors import InternalError, InvalidInput, MiiAzureError, Overloaded, PayloadTooLarge, RequestTimeout


class Failing(scoring_pb2_grpc.ScoringServicer):
    """Fails with `code` the first `times` calls."""

    def __init__(self, code: Any, times: int) -> None:
        self.code, self.times, self.calls = code, times, 0

    def Score(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.calls += 1
        if self.calls <= self.times:
            context.abort(self.code, "on purpose")
        return scoring_pb2.ScoreReply(json='"at last"')


@pytest.fixture
def failing() -> Iterator[Callable[[Any, int], tuple[Failing, str]]]:
    servers = []

    def start(code: Any, times: int) -> tuple[Failing, str]:
        servicer = Failing(code, times)
        server = grpc.server(ThreadPoolExecutor(2))
        scoring_pb2_grpc.add_ScoringServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        return servicer, f"127.0.0.1:{port}"

    yield start
    for server in servers:
        server.stop(None)


@pytest.fixture
def address(runner: Runner) -> str:
    return f"127.0.0.1:{runner.grpc_port}"


def test_query_stream_metadata_ready(address: str) -> None:
    with Client(address) as client:
        assert client.ready()
        assert client.query({"inputs": ["a", "ü"]}) == [{"echo": "A"}, {"echo": "Ü"}]
        assert list(client.stream({"inputs": "a b"})) == [{"token": {"text": "A"}}, {"token": {"text": "B"}}]
        assert client.metadata()["task"] == "text-classification"


async def test_the_same_on_asyncio(address: str) -> None:
    async with AsyncClient(address) as client:
        assert await client.ready()
        assert await asyncio.gather(*(client.query({"inputs": text}) for text in "ab")) == [
            {"echo": "A"},
            {"echo": "B"},
        ]
        assert [event async for event in client.stream({"inputs": "a b"})] == [
            {"token": {"text": "A"}},
            {"token": {"text": "B"}},
        ]
        assert (await client.metadata())["task"] == "text-classification"
        with pytest.raises(InvalidInput, match="told to refuse"):
            await client.query({"inputs": "status:400"})
        with pytest.raises(Overloaded):
            async for _ in client.stream({"inputs": "a fail"}):
                pass


async def test_the_synchronous_client_works_inside_a_running_loop(address: str) -> None:
    assert asyncio.get_running_loop().is_running()
    with Client(address) as client:
        assert client.query({"inputs": "a"}) == {"echo": "A"}


def test_errors_come_back_as_they_left(address: str) -> None:
    with Client(address) as client:
        with pytest.raises(InvalidInput) as refused:
            client.query({"inputs": "status:400"})
        assert refused.value.message == "The stub was told to refuse: ü."
        assert (refused.value.hint, refused.value.where) == ("Ask for something else.", "inputs[0]")
        with pytest.raises(Overloaded) as overloaded:
            client.query({"inputs": "status:429"})
        assert overloaded.value.retry_after_s == 7
        with pytest.raises(InternalError, match=r"id [0-9a-f]{12}"):
            client.query({"inputs": "crash"})
        with pytest.raises(PayloadTooLarge):
            client.query({"inputs": "x" * 2_000_000})
        with pytest.raises(Overloaded, match="broke off"):
            list(client.stream({"inputs": "a fail"}))
        for payload in ({"inputs": float("nan")}, {"inputs": object()}):
            with pytest.raises(InvalidInput, match="The payload is not JSON"):
                client.query(payload)


def test_a_deadline_always_holds(address: str) -> None:
    with Client(address) as client:
        with pytest.raises(RequestTimeout, match=r"within 0.2 s"):
            client.query({"inputs": "until:/never"}, timeout=0.2)
        with pytest.raises(RequestTimeout):
            list(client.stream({"inputs": "a until:/never"}, timeout=0.2))


def test_unavailable_is_tried_again(failing: Callable[[Any, int], tuple[Failing, str]]) -> None:
    servicer, address = failing(grpc.StatusCode.UNAVAILABLE, 2)
    with Client(address) as client:
        assert client.query({}) == "at last"
    assert servicer.calls == 3


async def test_unavailable_is_tried_again_on_asyncio(failing: Callable[[Any, int], tuple[Failing, str]]) -> None:
    servicer, address = failing(grpc.StatusCode.UNAVAILABLE, 1)
    async with AsyncClient(address) as client:
        assert await client.query({}) == "at last"
    assert servicer.calls == 2


@pytest.mark.parametrize("name", ["RESOURCE_EXHAUSTED", "INTERNAL", "INVALID_ARGUMENT", "ABORTED", "UNKNOWN"])
def test_nothing_else_is_tried_again(failing: Callable[[Any, int], tuple[Failing, str]], name: str) -> None:
    servicer, address = failing(grpc.StatusCode[name], 1)
    with Client(address) as client, pytest.raises(MiiAzureError, match="on purpose"):
        client.query({})
    assert servicer.calls == 1


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = f"127.0.0.1:{closed.getsockname()[1]}"
    with Client(address) as client:
        assert not client.ready()
        with pytest.raises(RunnerFailed, match=f"No runner answers at {address}"):
            client.query({})


@pytest.mark.parametrize("payload", ["a bare string", ["a"], 5, None])
def test_only_an_object_asks_for_a_stream(address: str, payload: Any) -> None:
    with Client(address) as client, pytest.raises(InvalidInput, match="is an object"):
        list(client.stream(payload))
    with pytest.raises(InvalidInput, match="is an object"):
        list(EndpointClient("http://localhost:1/score", lambda: "").stream(payload))
