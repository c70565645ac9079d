"""Where keys and tokens go: odd addresses are refused, and nothing is carried on by a redirect."""

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

import mii_azure
from local_runner.access.credentials import Credentials
from local_runner.client.client import Client
from local_runner.client.top import Source
from local_runner.process.launch import LOOPBACK
from local_runner.protocol.addresses import read_host_port, read_url
from local_runner.telemetry.otlp import Exporter
from mii_azure.azure.arm import Arm
from mii_azure.azure.live import Live
from mii_azure.azure.sending import Bearer, scoring_address
from mii_azure.errors import AzureUnavailable, RunnerFailed, SpecError
from mii_azure.sdk import endpoint_client

KEY = "a-key-that-nobody-guesses"
AZURE = "name.westeurope.inference.ml.azure.com"
ODD = [
    f"https://evil\\@{AZURE}/score",
    f"https://evil\\.{AZURE}/score",
    f"https://evil@{AZURE}/score",
    f"https://{AZURE}@evil/score",
    f"https://evil:80@{AZURE}/score",
    f"https://evil#@{AZURE}/score",
    f"https://evil?@{AZURE}/score",
    f"https://evil%2f.{AZURE}/score",
    f"https://evil%00.{AZURE}/score",
    f"https://evil\t.{AZURE}/score",
    f"https://evil\n.{AZURE}/score",
    f"https://{AZURE}\r\nX: y/score",
    f" https://{AZURE}/score",
    f"https:// {AZURE}/score",
    f"https://evil／.{AZURE}/score",
    f"https://ev\N{CYRILLIC SMALL LETTER I}l.{AZURE}/score",
    f"https://evil。{AZURE}/score",
    f"https://{AZURE}:0/score",
    f"https://{AZURE}:65536/score",
    f"https://{AZURE}:99999999/score",
    f"https://{AZURE}:/score",
    f"https://{AZURE}:443:443/score",
    f"https://[::1/score.{AZURE}/score",
    f"https://[::1%25eth0].{AZURE}/score",
    "https://[1:2]/score",
    f"https:///{AZURE}/score",
    f"https:{AZURE}/score",
    f"https:/\\{AZURE}/score",
    f"ftp://{AZURE}/score",
    f"https://.{AZURE}/score",
    f"https://-evil.{AZURE}/score",
    f"https://{AZURE}/score\x00",
    f"https://{AZURE}/score#here",
    f"https://{AZURE}",
    "https://",
    "",
]


class Stranger(http.server.BaseHTTPRequestHandler):
    """Keeps what it is sent, and sends elsewhere where it is told to."""

    seen: list[tuple[str, str | None]]
    location = ""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.do_GET()

    def do_GET(self) -> None:
        self.seen.append((self.path, self.headers.get("Authorization") or self.headers.get("api-key")))
        self.send_response(307 if self.location and self.command == "POST" else 302 if self.location else 200)
        if self.location:
            self.send_header("Location", self.location)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: Any) -> None:
        return


def _listening(location: str = "") -> tuple[http.server.ThreadingHTTPServer, type[Stranger]]:
    handler = type("Handler", (Stranger,), {"seen": [], "location": location})
    server = http.server.ThreadingHTTPServer((LOOPBACK, 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, handler


@pytest.fixture
def redirected() -> Iterator[tuple[str, Any, Any]]:
    """HOST:PORT of a server that sends elsewhere, what it saw, and what was seen there, under another name."""
    stranger, there = _listening()
    friend, here = _listening(f"http://localhost:{stranger.server_address[1]}/steal")
    yield f"{LOOPBACK}:{friend.server_address[1]}", here.seen, there.seen
    for server in (friend, stranger):
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("url", ODD)
def test_odd_urls_are_refused_before_anything_is_sent(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def send(*_: Any, **__: Any) -> Any:
        raise AssertionError("something was sent")

    monkeypatch.setattr(requests.Session, "send", send)
    with pytest.raises(SpecError) as caught:
        endpoint_client.of_url(url, Credentials(api_key=KEY)).query({"inputs": "a"})
    assert caught.value.hint and KEY not in str(caught.value)


@given(st.text(st.sampled_from(f"\\@%#?/:. \t\n\x00-[]aé{AZURE}"), max_size=12), st.integers(0, 60))
def test_whatever_is_taken_goes_where_it_was_read(odd: str, at: int) -> None:
    """requests, urllib and ours agree on the host of every URL that is taken."""
    url = f"https://{AZURE}/score"
    url = url[:at] + odd + url[at:]
    try:
        address = read_url(url)
    except ValueError as error:
        assert str(error)
        return
    prepared = requests.Request("POST", url).prepare()
    assert read_url(str(prepared.url))[:3] == address[:3]


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        (f"https://{AZURE}/score", AZURE, 443),
        (f"HTTPS://{AZURE.upper()}/score", AZURE, 443),
        ("http://localhost:5001/score?a=b%20c&d=@", "localhost", 5001),
        ("http://[::1]:5001/api/v1/endpoint/my-qa/score", "[::1]", 5001),
        ("http://10.0.0.4/score", "10.0.0.4", 80),
        ("http://my_service.ns.svc.cluster.local.:8080/v1/x~y/a@b", "my_service.ns.svc.cluster.local.", 8080),
        ("https://xn--nxasmq6b.example/score", "xn--nxasmq6b.example", 443),
    ],
)
def test_ordinary_urls_are_taken(url: str, host: str, port: int) -> None:
    assert scoring_address(url)[1:3] == (host, port)


@pytest.mark.parametrize(
    "address",
    ["dns:evil:50051", "unix:evil:1", "a@b:1", "a b:1", "a:1\n", "::1:50051", "a:0", "a:65536", "é:1", "a", "a\\b:1"],
)
def test_odd_addresses_of_grpc_get_no_key(address: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        read_host_port(address)
    with pytest.raises(RunnerFailed, match="gets no key"):
        Client(address, Credentials(api_key=KEY))
    with pytest.raises(RunnerFailed, match="is no address"):
        Source(address, False, None, None)


def test_a_key_follows_no_redirect(redirected: tuple[str, Any, Any]) -> None:
    address, here, there = redirected
    with (
        mii_azure.client(f"http://{address}/score", Credentials(api_key=KEY)) as client,
        pytest.raises(AzureUnavailable, match="sends elsewhere, to http://localhost"),
    ):
        client.query({"inputs": "a"})
    assert here == [("/score", f"Bearer {KEY}")] and there == []


def test_the_key_of_an_endpoint_follows_no_redirect(redirected: tuple[str, Any, Any]) -> None:
    address, here, there = redirected
    operations = SimpleNamespace(
        get=lambda name: SimpleNamespace(scoring_uri=f"http://{address}/score"),
        get_keys=lambda name: SimpleNamespace(primary_key=KEY),
    )
    live = Live(SimpleNamespace(online_endpoints=operations), "my-qa")
    with pytest.raises(AzureUnavailable, match="sends elsewhere"):
        live.send("{}")
    assert here == [("/score", f"Bearer {KEY}")] and there == []


def test_the_key_of_top_follows_no_redirect(redirected: tuple[str, Any, Any], tmp_path: Path) -> None:
    address, here, there = redirected
    (tmp_path / "keys").write_text(KEY)
    with pytest.raises(RunnerFailed, match="answered 302"):
        Source(address, False, None, tmp_path / "keys").read()
    assert here == [("/metrics", f"Bearer {KEY}")] and there == []


def test_the_headers_of_traces_follow_no_redirect(
    redirected: tuple[str, Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, here, there = redirected
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"api-key={KEY}")
    Exporter(f"http://{address}/v1/traces").export([])
    assert here == [("/v1/traces", KEY)] and there == []


def test_a_key_is_for_the_host_of_the_prepared_request() -> None:
    prepared = requests.Request("POST", f"https://evil\\@{AZURE}/score").prepare()
    for url in (str(prepared.url), "https://evil/score", f"http://{AZURE}/score", f"https://{AZURE}:444/score"):
        prepared.url = url
        with pytest.raises(SpecError):
            Bearer(scoring_address(f"https://{AZURE}/score"), KEY)(prepared)
    assert "Authorization" not in prepared.headers


def test_a_key_for_azure_goes_by_tls_only(redirected: tuple[str, Any, Any]) -> None:
    with pytest.raises(SpecError, match="without TLS"):
        endpoint_client.of_url(f"http://{AZURE}/score", Credentials(api_key=KEY)).query({"inputs": "a"})


def test_a_netrc_file_does_not_replace_the_key(
    redirected: tuple[str, Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, here, _ = redirected
    (tmp_path / "netrc").write_text("default login me password mine\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with (
        mii_azure.client(f"http://{address}/score", Credentials(api_key=KEY)) as client,
        pytest.raises(AzureUnavailable),
    ):
        client.query({"inputs": "a"})
    assert here == [("/score", f"Bearer {KEY}")]


@pytest.mark.parametrize("link", [".evil.example/x", "@evil.example/x", "https://evil.example/x", "http://127.0.0.1/x"])
def test_the_next_page_of_arm_is_at_arm(link: str, monkeypatch: pytest.MonkeyPatch) -> None:
    base = "https://management.azure.com"
    asked: list[str] = []

    def send(self: Arm, method: str, path: str, query: Any, body: Any = None) -> dict[str, Any]:
        asked.append(path)
        return {"value": [1], "nextLink": base + link if link[0] in ".@" else link} if len(asked) == 1 else {}

    monkeypatch.setattr(Arm, "_send", send)
    arm = Arm(SimpleNamespace(_base_url=base, _credential=SimpleNamespace()))
    with pytest.raises(AzureUnavailable, match="no token goes there"):
        arm.pages("/subscriptions", "1")
    assert asked == ["/subscriptions"]
