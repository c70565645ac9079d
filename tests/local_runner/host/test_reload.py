"""SIGHUP: keys, certificates and settings are read again, and what is open goes on."""

import http.client
import json
import os
import shutil
import signal
import socket
import ssl
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509

from local_runner.host import reload
from local_runner.host.reload import Tuning
from local_runner.process.launch import LOOPBACK, Runner
from local_runner.protos import scoring_pb2, scoring_pb2_grpc
from mii_azure.errors import RunnerFailed
from tests.local_runner.certificates import Authority, Pair
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("forked")

_PATIENCE_S = 20.0


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


def hang_up(runner: Runner, word: str) -> str:
    """Send SIGHUP; return the line that the runner then says, which begins with `word`."""
    before = len(_lines(runner))
    os.kill(runner.process.pid, signal.SIGHUP)
    return until(lambda: next((line for line in _lines(runner)[before:] if line.startswith(word)), ""))


def _lines(runner: Runner) -> list[str]:
    return runner.log.read_text(encoding="utf-8").splitlines()


def connection_to(runner: Runner, trusted: ssl.SSLContext | None = None) -> http.client.HTTPConnection:
    if trusted is None:
        return http.client.HTTPConnection(LOOPBACK, runner.http_port, timeout=30)
    return http.client.HTTPSConnection(LOOPBACK, runner.http_port, timeout=30, context=trusted)


def post(runner: Runner, body: Any, trusted: ssl.SSLContext | None = None, **headers: str) -> tuple[int, Any]:
    connection = connection_to(runner, trusted)
    try:
        connection.request("POST", "/score", json.dumps(body), headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def serial(port: int, ca: Path) -> int:
    """Of the certificate that a connection made now is shown."""
    with (
        socket.create_connection((LOOPBACK, port), timeout=30) as plain,
        ssl.create_default_context(cafile=ca).wrap_socket(plain, server_hostname=LOOPBACK) as secured,
    ):
        return x509.load_der_x509_certificate(secured.getpeercert(binary_form=True) or b"").serial_number


def put(pair: Pair, target: Pair) -> int:
    shutil.copy(pair.cert, target.cert)
    shutil.copy(pair.key, target.key)
    return x509.load_pem_x509_certificate(pair.cert.read_bytes()).serial_number


def test_keys_and_certificates_change_while_a_stream_goes_on(
    bundle: Path, authority: Authority, tmp_path: Path
) -> None:
    used, keys, gate = Pair(tmp_path / "s.crt", tmp_path / "s.key"), tmp_path / "keys", tmp_path / "gate"
    first = put(authority.sign("first"), used)
    keys.write_text("old-key\n")
    options = ("--tls-cert", str(used.cert), "--tls-key", str(used.key), "--api-key-file", str(keys))
    trusted = ssl.create_default_context(cafile=authority.ca)
    with Runner(bundle, arguments=options) as runner:
        assert {serial(runner.http_port, authority.ca), serial(runner.grpc_port, authority.ca)} == {first}
        stream = connection_to(runner, trusted)
        body = json.dumps({"inputs": f"a until:{gate} b", "stream": True})
        stream.request("POST", "/score", body, {"x-api-key": "old-key"})
        response = stream.getresponse()
        assert b'"A"' in response.readline()

        second = put(authority.sign("second"), used)
        keys.write_text("new-key\n")
        assert "1 API keys, a certificate until 20" in hang_up(runner, "reloaded")
        assert {serial(runner.http_port, authority.ca), serial(runner.grpc_port, authority.ca)} == {second}
        assert post(runner, {"inputs": "a"}, trusted, **{"x-api-key": "old-key"})[0] == 401
        assert post(runner, {"inputs": "a"}, trusted, **{"x-api-key": "new-key"})[0] == 200
        assert _grpc_code(runner, authority, "old-key") is grpc.StatusCode.UNAUTHENTICATED
        assert _grpc_code(runner, authority, "new-key") is grpc.StatusCode.OK

        gate.touch()
        rest = response.read()
        assert b'"B"' in rest
        assert rest.endswith(b"data: [DONE]\n\n")
        stream.close()

        # What is wrong is told, and nothing of it is taken over.
        put(authority.sign("expired", since=-9, until=-1), used)
        keys.write_text("a-third-key\n")
        assert "expired on" in hang_up(runner, "not reloaded")
        assert {serial(runner.http_port, authority.ca), serial(runner.grpc_port, authority.ca)} == {second}
        assert post(runner, {"inputs": "a"}, trusted, **{"x-api-key": "new-key"})[0] == 200
        third = put(authority.sign("third"), used)
        hang_up(runner, "reloaded")
        assert {serial(runner.http_port, authority.ca), serial(runner.grpc_port, authority.ca)} == {third}


def _grpc_code(runner: Runner, authority: Authority, key: str) -> Any:
    credentials = grpc.ssl_channel_credentials(authority.ca.read_bytes())
    with grpc.secure_channel(f"{LOOPBACK}:{runner.grpc_port}", credentials) as channel:
        ask = scoring_pb2_grpc.ScoringStub(channel).Score
        try:
            return ask.with_call(scoring_pb2.ScoreRequest(json='{"inputs": "a"}'), 20, (("x-api-key", key),))[1].code()
        except grpc.RpcError as error:
            return error.code()


def test_the_authorities_of_clients_change_too(bundle: Path, authority: Authority, tmp_path: Path) -> None:
    server, other = authority.sign("server"), Authority(tmp_path, "other")
    accepted = tmp_path / "accepted.pem"
    shutil.copy(authority.ca, accepted)
    options = ("--tls-cert", str(server.cert), "--tls-key", str(server.key), "--tls-client-ca", str(accepted))
    with Runner(bundle, arguments=options) as runner:
        ours, theirs = _client(authority, authority.sign("ours")), _client(authority, other.sign("theirs"))
        assert post(runner, {"inputs": "a"}, ours)[0] == 200
        with pytest.raises((ssl.SSLError, ConnectionError)):
            post(runner, {"inputs": "a"}, theirs)
        shutil.copy(other.ca, accepted)
        hang_up(runner, "reloaded")
        assert post(runner, {"inputs": "a"}, theirs)[0] == 200
        with pytest.raises((ssl.SSLError, ConnectionError)):
            post(runner, {"inputs": "a"}, ours)


def _client(authority: Authority, own: Pair) -> ssl.SSLContext:
    made = ssl.create_default_context(cafile=authority.ca)
    made.load_cert_chain(own.cert, own.key)
    return made


def test_limits_and_log_level_change(
    own_bundle: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = own_bundle(queue_size=1, max_batch_size=1)
    file, gate, busy = tmp_path / "settings.json", tmp_path / "gate", tmp_path / "busy"
    file.write_text("{}")
    monkeypatch.setenv("STUB_BUSY", str(busy))
    with (
        Runner(bundle, arguments=("--settings-file", str(file), "--drain-seconds", "5")) as runner,
        ThreadPoolExecutor(3) as pool,
    ):
        held = [pool.submit(post, runner, {"inputs": f"until:{gate}"}) for _ in range(2)]
        until(lambda: busy.exists() and len(busy.read_text().split()) == len(held))
        assert post(runner, {"inputs": "a"})[0] == 429
        file.write_text('{"queue_size": 5, "request_timeout_s": 7, "log_level": "info", "drain_seconds": 6}')
        told = hang_up(runner, "reloaded")
        assert told == "reloaded: log_level info, drain_seconds 6, queue_size 5, request_timeout_s 7"
        assert post(runner, {"inputs": "a"})[0] == 200
        limits = post(runner, {"mii_azure": "metadata"})[1]["limits"]
        assert limits == {"queue_size": 5, "request_timeout_s": 7}
        assert any("answered" in line for line in _lines(runner))
        file.write_text('{"max_payload_bytes": 1}')
        assert "'max_payload_bytes', which cannot change" in hang_up(runner, "not reloaded")
        file.write_text("{}")
        assert hang_up(runner, "reloaded") == "reloaded: the settings of the command line"
        assert post(runner, {"inputs": "a"})[0] == 429
        gate.touch()
        assert [future.result()[0] for future in held] == [200, 200]


def test_replicas_go_by_it_too_also_one_that_is_started_later(bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "settings.json"
    file.write_text('{"queue_size": 9}')

    def of_replicas() -> set[int]:
        return {post(runner, {"mii_azure": "metadata"})[1]["limits"]["queue_size"] for _ in range(6)}

    with Runner(bundle, arguments=("--settings-file", str(file), "--replicas", "2")) as runner:
        until(lambda: len(_ready(runner)) == 2)
        assert of_replicas() == {9}
        file.write_text('{"queue_size": 11}')
        hang_up(runner, "reloaded")
        assert of_replicas() == {11}
        pid = _ready(runner)[0]
        os.kill(pid, signal.SIGKILL)
        until(lambda: pid not in (found := _ready(runner)) and len(found) == 2)
        assert of_replicas() == {11}


def _ready(runner: Runner) -> list[int]:
    connection = connection_to(runner)
    connection.request("GET", "/readyz")
    told = json.loads(connection.getresponse().read())
    connection.close()
    return [each["pid"] for each in told["replica"] if each["state"] == "ready"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "is not JSON"),
        ("[]", "holds no JSON object"),
        ('{"queue_size": 0}', "sets queue_size to 0"),
        ('{"queue_size": 1.5}', "sets queue_size to 1.5"),
        ('{"queue_size": true}', "sets queue_size to True"),
        ('{"request_timeout_s": "9"}', "sets request_timeout_s to '9'"),
        ('{"log_level": "loud"}', "sets log_level to 'loud'"),
        ('{"drain_seconds": -1}', "sets drain_seconds to -1"),
        ('{"colour": "red"}', "sets 'colour', which cannot change"),
    ],
)
def test_a_wrong_settings_file_is_told(tmp_path: Path, text: str, why: str) -> None:
    file = tmp_path / "settings.json"
    file.write_text(text)
    with pytest.raises(RunnerFailed, match=why):
        reload.read_settings(file)


def test_without_a_settings_file_nothing_is_set(tmp_path: Path) -> None:
    assert reload.read_settings(None) == Tuning()
    with pytest.raises(RunnerFailed, match="cannot be read"):
        reload.read_settings(tmp_path / "absent")
