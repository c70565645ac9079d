"""Certificates and keys, over real sockets."""

import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from local_runner.access.credentials import Credentials
from local_runner.access.security import SecurityFiles, load
from local_runner.client.client import AsyncClient, Client
from local_runner.process.launch import LOOPBACK, Runner
from local_runner.protos import inference_pb2, inference_pb2_grpc
from mii_azure.errors import RunnerFailed, Unauthenticated
from mii_azure.sdk.query import query
from tests.local_runner.certificates import Authority, Pair

pytestmark = pytest.mark.usefixtures("forked")

KEY, NEXT_KEY = "a-key-that-nobody-guesses", "the-next-key"
ASK = {"inputs": "a"}


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def server(authority: Authority) -> Pair:
    return authority.sign("server")


@pytest.fixture(scope="module")
def mine(authority: Authority) -> Pair:
    return authority.sign("client")


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text(f"# rotated on Mondays\n{KEY}\n\n{NEXT_KEY}\n")
    return path


@contextmanager
def serving(bundle: Path, **options: Path) -> Iterator[Runner]:
    arguments = [word for name, path in options.items() for word in (f"--{name.replace('_', '-')}", str(path))]
    with Runner(bundle, arguments=("--drain-seconds", "0.5", "--verbose", *arguments)) as runner:
        yield runner


@pytest.fixture(scope="module")
def guarded(bundle: Path, server: Pair, key_file: Path) -> Iterator[Runner]:
    """TLS, and a key."""
    with serving(bundle, tls_cert=server.cert, tls_key=server.key, api_key_file=key_file) as runner:
        yield runner


@pytest.fixture(scope="module")
def mutual(bundle: Path, server: Pair, authority: Authority) -> Iterator[Runner]:
    """TLS on both sides."""
    with serving(bundle, tls_cert=server.cert, tls_key=server.key, tls_client_ca=authority.ca) as runner:
        yield runner


def context(authority: Authority, mine: Pair | None = None) -> ssl.SSLContext:
    made = ssl.create_default_context(cafile=authority.ca)
    if mine:
        made.load_cert_chain(mine.cert, mine.key)
    return made


def get(runner: Runner, path: str, verify: ssl.SSLContext, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    url = f"https://{LOOPBACK}:{runner.http_port}{path}"
    return httpx.get(url, headers=named, verify=verify, trust_env=False)


def address(runner: Runner) -> str:
    return f"{LOOPBACK}:{runner.grpc_port}"


def test_a_client_with_key_and_authority_is_answered(guarded: Runner, authority: Authority, key_file: Path) -> None:
    proof = Credentials.of_files(authority.ca, api_key_file=key_file)
    with Client(address(guarded), proof) as client:
        assert client.query(ASK) == {"echo": "A"}
        assert list(client.stream(ASK))
        assert client.metadata()
        assert client.ready()
    assert list(query(address(guarded), ASK, credentials=proof)) == [{"echo": "A"}]
    assert list(query(address(guarded), ASK, credentials=Credentials(ca=authority.ca, api_key=NEXT_KEY)))


async def test_the_asynchronous_client_too(guarded: Runner, authority: Authority) -> None:
    async with AsyncClient(address(guarded), Credentials(ca=authority.ca, api_key=KEY)) as client:
        assert await client.query(ASK) == {"echo": "A"}
        assert [event async for event in client.stream(ASK)]
    async with AsyncClient(address(guarded), Credentials(ca=authority.ca, api_key="no")) as client:
        assert await client.ready()
        with pytest.raises(Unauthenticated):
            await client.query(ASK)


@pytest.mark.parametrize(("key", "says"), [("", "no key was sent"), (KEY[:-1], "is not one of this runner's")])
def test_without_the_key_only_the_probes_answer(guarded: Runner, authority: Authority, key: str, says: str) -> None:
    with Client(address(guarded), Credentials(ca=authority.ca, api_key=key)) as client:
        assert client.ready()
        for call in (lambda: client.query(ASK), lambda: list(client.stream(ASK)), client.metadata):
            with pytest.raises(Unauthenticated, match=says):
                call()
    sent = {"authorization": f"Bearer {key}"} if key else {}
    for path in ("/", "/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"):
        assert get(guarded, path, context(authority), **sent).status_code == 200
    for path in ("/v2", "/v1/models", "/openapi.json", "/swagger.json", "/nowhere", "//readyz", "/readyz/"):
        refused = get(guarded, path, context(authority), **sent)
        told = refused.json()
        code = told["code"] if path == "/v2" else told["error"]["code"]
        assert (refused.status_code, code) == (401, "unauthenticated")
    assert get(guarded, "/v1/models", context(authority)).json()["error"]["type"] == "authentication_error"


@pytest.mark.parametrize(
    "headers", [{"authorization": f"Bearer {KEY}"}, {"authorization": f"bearer {NEXT_KEY}"}, {"x_api_key": KEY}]
)
def test_a_key_comes_in_either_header(guarded: Runner, authority: Authority, headers: dict[str, str]) -> None:
    assert get(guarded, "/v2", context(authority), **headers).status_code == 200


def test_open_calls_of_the_protocol(guarded: Runner, authority: Authority) -> None:
    roots = grpc.ssl_channel_credentials(authority.ca.read_bytes())
    with grpc.secure_channel(address(guarded), roots) as channel:
        protocol = inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        assert protocol.ServerLive(inference_pb2.ServerLiveRequest()).live
        assert protocol.ServerReady(inference_pb2.ServerReadyRequest()).ready
        assert health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest()).status == 1
        for call, message in (
            (protocol.ServerMetadata, inference_pb2.ServerMetadataRequest()),
            (protocol.ModelInfer, inference_pb2.ModelInferRequest()),
        ):
            with pytest.raises(grpc.RpcError) as raised:
                call(message)
            assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_no_key_reaches_the_log(guarded: Runner, authority: Authority) -> None:
    get(guarded, "/v2", context(authority), authorization=f"Bearer {KEY}")
    log = guarded.log.read_text()
    assert "ready: echo (text-classification) at grpcs://127.0.0.1:" in log
    assert KEY not in log and NEXT_KEY not in log
    assert KEY not in repr(Credentials(api_key=KEY))


def test_mutual_tls_wants_a_certificate_of_its_authority(
    mutual: Runner, authority: Authority, mine: Pair, tmp_path: Path
) -> None:
    with Client(address(mutual), Credentials.of_files(authority.ca, mine.cert, mine.key)) as client:
        assert client.query(ASK) == {"echo": "A"}
    assert get(mutual, "/readyz", context(authority, mine)).status_code == 200
    other = Authority(tmp_path, "stranger").sign("client")
    for pair in (None, other):
        proof = Credentials(ca=authority.ca, cert=pair.cert if pair else None, key=pair.key if pair else None)
        with Client(address(mutual), proof) as client, pytest.raises(RunnerFailed):
            client.query(ASK, timeout=10)
        with pytest.raises(httpx.TransportError):
            get(mutual, "/readyz", context(authority, pair))


def test_a_client_of_another_authority_is_told_so(guarded: Runner, tmp_path: Path) -> None:
    with (
        Client(address(guarded), Credentials(ca=Authority(tmp_path, "stranger").ca)) as client,
        pytest.raises(RunnerFailed, match=r"No TLS connection to .*CERTIFICATE_VERIFY_FAILED"),
    ):
        client.query(ASK, timeout=10)


Broken = Callable[[Authority, Pair, Path], SecurityFiles]
BROKEN: list[tuple[str, Broken]] = [
    (r"The certificate in .*old.crt expired on \d{4}-", lambda a, s, t: _files(a.sign("old", -9, -1))),
    (r"young.crt is valid only from", lambda a, s, t: _files(a.sign("young", 1, 9))),
    ("is not the key of", lambda a, s, t: SecurityFiles(s.cert, a.sign("other").key)),
    ("holds no PEM certificate", lambda a, s, t: SecurityFiles(s.key, s.key)),
    ("absent cannot be read: No such file", lambda a, s, t: SecurityFiles(t / "absent", s.key)),
    ("needs a certificate and its key", lambda a, s, t: SecurityFiles(s.cert)),
    ("Client certificates need TLS", lambda a, s, t: SecurityFiles(client_ca=a.ca)),
    ("holds no key", lambda a, s, t: SecurityFiles(api_keys=_written(t, "# nothing\n"))),
    ("cannot be sent in a header", lambda a, s, t: SecurityFiles(api_keys=_written(t, "två nycklar\n"))),
]


def _files(pair: Pair) -> SecurityFiles:
    return SecurityFiles(pair.cert, pair.key)


def _written(folder: Path, text: str) -> Path:
    (folder / "keys").write_text(text)
    return folder / "keys"


@pytest.mark.parametrize(("says", "make"), BROKEN, ids=[says for says, _ in BROKEN])
def test_files_that_are_wrong_are_told_at_start(
    says: str, make: Broken, authority: Authority, server: Pair, tmp_path: Path
) -> None:
    with pytest.raises(RunnerFailed, match=says):
        load(make(authority, server, tmp_path))


def run(*arguments: Any, **env: str) -> "subprocess.CompletedProcess[str]":
    import os

    command = [sys.executable, "-m", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, **env}, check=False)


def test_an_expired_certificate_ends_both_commands_with_one_sentence(authority: Authority, bundle: Path) -> None:
    old = authority.sign("expired", -9, -1)
    ports = ("--grpc-port", "0", "--http-port", "0")
    env = {"MII_AZURE_TLS_CERT": str(old.cert), "MII_AZURE_TLS_KEY": str(old.key)}
    for done in (
        run("local_runner", bundle, *ports, **env),
        run("mii_azure.cli.app", "serve", bundle, *ports, "--tls-cert", old.cert, "--tls-key", old.key),
    ):
        assert done.returncode == 4, done.stderr
        assert "expired.crt expired on " in done.stderr
        assert "Traceback" not in done.stderr


def test_the_command_line_asks_with_key_and_authority(guarded: Runner, authority: Authority, key_file: Path) -> None:
    ask = ("mii_azure.cli.app", "query", address(guarded), '{"inputs": "a"}', "--tls-ca", authority.ca)
    assert '"echo": "A"' in run(*ask, "--api-key-file", key_file).stdout
    refused = run(*ask)
    assert (refused.returncode, "[unauthenticated]" in refused.stderr) == (4, True)
