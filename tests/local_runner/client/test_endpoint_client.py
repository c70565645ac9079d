"""`mii_azure.client` by URL and by HOST:PORT: keys, TLS, streams, errors, and to whom a token is ever sent."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import mii_azure
from local_runner.access.credentials import Credentials
from local_runner.errors import Unauthenticated
from local_runner.process.launch import LOOPBACK, Runner
from mii_azure.errors import AzureUnavailable, SpecError
from mii_azure.sdk import endpoint_client
from mii_azure.sdk.endpoint_client import EndpointClient
from mii_azure.sdk.query import query
from scoring.errors import InvalidInput, Overloaded
from tests.local_runner.certificates import Authority

pytestmark = pytest.mark.usefixtures("forked")

KEY = "a-key-that-nobody-guesses"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def guarded(bundle: Path, authority: Authority) -> Iterator[Runner]:
    """The stub behind TLS and a key."""
    keys = authority.ca.parent / "keys"
    keys.write_text(KEY)
    pair = authority.sign("server")
    arguments = ("--tls-cert", str(pair.cert), "--tls-key", str(pair.key), "--api-key-file", str(keys))
    with Runner(bundle, arguments=arguments) as started:
        yield started


def plain(runner: Runner) -> str:
    return f"http://{LOOPBACK}:{runner.http_port}/score"


def test_a_url_is_asked_streamed_and_told_of(runner: Runner) -> None:
    with mii_azure.client(plain(runner)) as client:
        assert isinstance(client, EndpointClient)
        assert client.query({"inputs": "hello"}) == {"echo": "HELLO"}
        assert [event["token"]["text"] for event in client.stream({"inputs": "a b c"})] == ["A", "B", "C"]
        assert client.metadata()["name"] == "echo"
        assert client.ready()


def test_a_host_and_port_is_grpc(runner: Runner) -> None:
    with mii_azure.client(f"{LOOPBACK}:{runner.grpc_port}") as client:
        assert client.query({"inputs": "hello"}) == {"echo": "HELLO"}
    assert list(query(plain(runner), {"inputs": "hello"})) == [{"echo": "HELLO"}]


def test_errors_are_the_models_own(runner: Runner) -> None:
    with mii_azure.client(plain(runner)) as client:
        with pytest.raises(InvalidInput, match="told to refuse") as refused:
            client.query({"inputs": "status:400"})
        assert refused.value.where == "inputs[0]"
        with pytest.raises(Overloaded) as full:
            client.query({"inputs": "status:429"})
        assert full.value.retry_after_s == 7
        with pytest.raises(InvalidInput, match="not JSON"):
            client.query({"inputs": float("nan")})
        with pytest.raises(Overloaded, match="broke off"):
            list(client.stream({"inputs": "a fail b"}))


def test_a_key_over_tls(guarded: Runner, authority: Authority) -> None:
    url = f"https://localhost:{guarded.http_port}/score"
    with mii_azure.client(url, Credentials(ca=authority.ca, api_key=KEY)) as client:
        assert client.query({"inputs": "hello"}) == {"echo": "HELLO"}
    with mii_azure.client(url, Credentials(ca=authority.ca)) as client:
        with pytest.raises(Unauthenticated):
            client.query({"inputs": "hello"})
        assert not client.ready()


def test_nobody_there(unused_tcp_port: int) -> None:
    with (
        mii_azure.client(f"http://{LOOPBACK}:{unused_tcp_port}/score") as client,
        pytest.raises(AzureUnavailable, match="was not reached"),
    ):
        client.query({"inputs": "hello"})


@pytest.mark.parametrize("name", ["https://somewhere", "http:///score", "endpoint:"])
def test_what_is_no_address(name: str) -> None:
    with pytest.raises(SpecError):
        mii_azure.client(name, ml_client=object())


@pytest.fixture
def signed_in(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Who asks azure-identity for tokens, and for what."""
    asked: list[str] = []

    class Somebody:
        def get_token(self, scope: str) -> Any:
            asked.append(scope)
            return SimpleNamespace(token=f"token-{len(asked)}")

    monkeypatch.setattr("azure.identity.DefaultAzureCredential", Somebody)
    return asked


def sent(client: EndpointClient, answers: list[int]) -> list[str | None]:
    """The authorization of every request, answered with these statuses in turn."""
    import requests

    seen: list[str | None] = []

    class Answers(requests.adapters.HTTPAdapter):
        def send(self, request: Any, **_: Any) -> Any:  # type: ignore[override]
            seen.append(request.headers.get("Authorization"))
            response = requests.Response()
            response.status_code = answers[len(seen) - 1]
            response._content, response._content_consumed = b"{}", True
            return response

    for scheme in ("http://", "https://"):
        client._session.mount(scheme, Answers())
    client.query({"inputs": "hello"})
    return seen


@pytest.mark.parametrize("cloud", ["com", "us", "cn"])
def test_a_token_of_its_cloud_goes_to_azure_and_is_renewed_once(cloud: str, signed_in: list[str]) -> None:
    client = endpoint_client.of_url(f"https://name.westeurope.inference.ml.azure.{cloud}/score")
    assert sent(client, [401, 200]) == ["Bearer token-1", "Bearer token-2"]
    assert signed_in == [f"https://ml.azure.{cloud}/.default"] * 2


@pytest.mark.parametrize(
    "url",
    [
        "http://name.westeurope.inference.ml.azure.com/score",
        "https://inference.ml.azure.com.example.org/score",
        "https://localhost:5001/score",
    ],
)
def test_a_token_goes_nowhere_else(signed_in: list[str], url: str) -> None:
    assert sent(endpoint_client.of_url(url), [200]) == [None]
    assert signed_in == []


def test_a_key_goes_before_a_token(signed_in: list[str]) -> None:
    url = "https://name.westeurope.inference.ml.azure.com/score"
    assert sent(endpoint_client.of_url(url, Credentials(api_key=KEY)), [200]) == [f"Bearer {KEY}"]
    assert signed_in == []
