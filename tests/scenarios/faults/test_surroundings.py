"""What is around a server fails: the disk that its log is on, the clock, and the certificate while it runs."""

import ast
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

import local_runner
import scoring
from local_runner.access.credentials import Credentials
from local_runner.client.client import Client
from local_runner.process.launch import Runner
from mii_azure.errors import RunnerFailed
from scoring.config import Limits
from tests.local_runner.certificates import DAY, Authority
from tests.scenarios.faults.conftest import HOST, lines, served, until
from tests.scenarios.fuzz.apps import serving
from tests.scoring.conftest import Served

pytestmark = pytest.mark.usefixtures("forked")

Tiny = Callable[[str, str], Path]


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_log_that_cannot_be_written_fails_no_request(form: str, bundle: Path, tmp_path: Path) -> None:
    # Every write to /dev/full is answered ENOSPC.
    with (
        Path("/dev/full").open("wb") as full,
        served(bundle, tmp_path, "--log-format", form, "--verbose", output=full) as server,
    ):
        for _ in range(5):
            assert server.score("a").json() == {"echo": "A"}
            assert server.score("print").json() == {"echo": "PRINT"}
            failed = server.score("crash")
            assert (failed.status_code, failed.json()["error"]["code"]) == (500, "internal")
        with Client(f"{HOST}:{server.grpc_port}") as client:
            assert client.query({"inputs": "b"}) == {"echo": "B"}
            assert list(client.stream({"inputs": "a b"}))
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(20) == 0


CLOCK = """
import os, time
real = time.time
time.time = lambda: real() + float(open(os.environ["JUMP"]).read() or 0)
"""


def test_a_jump_of_the_clock_changes_no_deadline(bundle: Path, tmp_path: Path) -> None:
    """The process's clock goes a year ahead, and back behind where it was, under requests that wait."""
    (tmp_path / "sitecustomize.py").write_text(CLOCK)
    jump, gate, busy = (tmp_path / name for name in ("jump", "gate", "busy"))
    jump.write_text("0")
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    env = {"PYTHONPATH": path, "JUMP": str(jump), "STUB_BUSY": str(busy)}
    with (
        served(bundle, tmp_path, "--drain-seconds", "20", **env) as server,
        Client(f"{HOST}:{server.grpc_port}") as client,
    ):
        assert httpx.get(f"{server.base}/v1/models", trust_env=False).json()["data"][0]["created"] > 0
        with ThreadPoolExecutor() as pool:
            slow = [
                pool.submit(server.score, f"until:{gate}"),
                pool.submit(client.query, {"inputs": f"until:{gate}"}),
                pool.submit(lambda: list(client.stream({"inputs": f"a until:{gate}"}))),
            ]
            until(lambda: lines(busy) == 3)
            for seconds in (365 * 86400, -86400):
                jump.write_text(str(seconds))
                assert server.score("a").json() == {"echo": "A"}
                told = httpx.get(f"{server.base}/readyz", trust_env=False).json()
                assert (told["state"], told["seconds"] < 600) == ("ready", True)
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
            jump.write_text(str(365 * 86400))  # must not use the drain's budget up
            time.sleep(0.5)
            assert server.process.poll() is None
            gate.touch()
            assert [bool(call.result()) for call in slow] == [True] * 3
            assert server.process.wait(15) == 0


def test_a_jump_of_the_clock_ends_no_generation(tiny: Tiny, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served_model = Served(tiny("gpt2", "text-generation"), "text-generation", Limits(request_timeout_s=30))
    asked = {"inputs": "The king", "parameters": {"max_new_tokens": 60, "ignore_eos": True}, "stream": True}
    real, seen = time.time, 0
    with serving(bundle, served_model.service) as base, httpx.Client(trust_env=False, timeout=30) as http:
        whole = http.post(f"{base}/score", json=asked).text
        with http.stream("POST", f"{base}/score", json=asked) as reply:
            text = ""
            for part in reply.iter_text():
                text += part
                seen += 1
                monkeypatch.setattr(time, "time", lambda ahead=(-1) ** seen * 1e8: real() + ahead)
    assert seen > 3
    assert text == whole
    assert text.endswith("data: [DONE]\n\n")


#: Where the time of day is meant: `created` of OpenAI's interface, and the validity of certificates.
_TIME_OF_DAY = {"openai.py", "responses_events.py", "retrieval.py", "security.py"}


@pytest.mark.parametrize("package", [scoring, local_runner], ids=lambda package: package.__name__)
def test_only_what_people_read_asks_for_the_time_of_day(package: Any) -> None:
    found = set()
    for path in Path(package.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                name = (node.value.id, node.attr)
                if name in {("time", "time"), ("datetime", "now"), ("datetime", "utcnow")}:
                    found.add(path.name)
            if isinstance(node, ast.ImportFrom) and node.module == "time":
                found |= {path.name for alias in node.names if alias.name == "time"}
    assert found <= _TIME_OF_DAY


def test_a_certificate_that_expires_meanwhile_is_told_by_the_client(bundle: Path, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    with ExitStack() as stack:
        runner, expires = _with_a_short_certificate(bundle, authority, stack)
        address, proof = f"{HOST}:{runner.grpc_port}", Credentials.of_files(authority.ca)
        with Client(address, proof) as client:
            assert client.query({"inputs": "a"}) == {"echo": "A"}
            time.sleep(max(0.0, expires + 2 - time.monotonic()))
            assert client.query({"inputs": "b"}) == {"echo": "B"}  # on the connection that it has
        with Client(address, proof) as client, pytest.raises(RunnerFailed) as raised:
            client.query({"inputs": "c"}, timeout=10)
    says = "CERTIFICATE_VERIFY_FAILED: certificate has expired."
    assert raised.value.message == f"No TLS connection to {address}: {says}"
    assert raised.value.hint == "Check certificates on both sides."


def _with_a_short_certificate(bundle: Path, authority: Authority, stack: ExitStack) -> tuple[Runner, float]:
    """A runner whose certificate is still valid, and when by the monotonic clock it expires."""
    for seconds in (7, 30):  # the second for a machine so busy that the first is over before the start
        expires = time.monotonic() + seconds
        pair = authority.sign(f"short-{seconds}", -1, seconds / DAY.total_seconds())
        arguments = ("--tls-cert", str(pair.cert), "--tls-key", str(pair.key), "--drain-seconds", "1")
        with suppress(RunnerFailed):
            runner = stack.enter_context(Runner(bundle, arguments=arguments))
            if time.monotonic() < expires - 1:
                return runner, expires
    raise AssertionError("the runner did not start in 30 s")
