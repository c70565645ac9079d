"""What strangers send: without a key, ahead of answers, without an end, by drops; the server's memory is bounded."""

import random
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hypothesis import strategies as st

from local_runner.grpc import services
from local_runner.host.host import ScriptHost
from local_runner.http import app
from local_runner.http import uvicorn_protocol as limits
from local_runner.process.launch import LOOPBACK, Runner
from tests.local_runner.access.test_doors import KEY, METHODS, OPEN, WRONG, Door, odd, paths
from tests.local_runner.conftest import bundle
from tests.scenarios.faults.conftest import connect, resident
from tests.scenarios.faults.test_limits import GET, LONG, POST, flood, heard_until_reset
from tests.scenarios.fuzz.conftest import Tally, sizes
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("forked")

__all__ = ["bundle"]

#: More that a server may hold after an attack than before, and while one goes on; what it answers with comes back.
GROWTH = 48 << 20
_LOOK_S = 0.02


@pytest.fixture(scope="module")
def _guarded(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(KEY)
    with Runner(bundle, arguments=("--drain-seconds", "1", "--api-key-file", str(keys))) as runner:
        yield runner


@pytest.fixture
def guarded(_guarded: Runner) -> Iterator[Runner]:
    """A runner that holds little more memory after a test than before it, answers, and has nothing in its log."""
    scored(_guarded)
    before = resident(_guarded.process.pid)
    yield _guarded
    scored(_guarded)
    assert resident(_guarded.process.pid) - before < GROWTH
    assert "Traceback" not in _guarded.log.read_text()


def scored(runner: Runner) -> None:
    url, headers = f"http://{LOOPBACK}:{runner.http_port}/score", {"x-api-key": KEY}
    assert httpx.post(url, json={"inputs": "a"}, headers=headers, trust_env=False).json() == {"echo": "A"}


def held(runner: Runner, before: int) -> None:
    """It answers probes, and holds little more than before."""
    url = f"http://{LOOPBACK}:{runner.http_port}/readyz"
    assert httpx.get(url, trust_env=False, timeout=10).status_code == 200
    assert resident(runner.process.pid) - before < GROWTH


@sizes(60, 4000)
def test_any_route_and_method_without_a_key(guarded: Runner, bundle: Path, tally: Tally, count: int) -> None:
    known = sorted(set(paths(app.build(ScriptHost(bundle)).routes)))
    targets = [*known, *(spelt for path in known for spelt in odd(path)), *(f"http://a{path}" for path in known)]
    words = st.text(st.characters(codec="ascii", categories=["L", "N", "P"]), max_size=8)
    strange = st.lists(words, min_size=1, max_size=4).map(lambda parts: "/" + "/".join(parts))
    door = Door(guarded.http_port)

    def check(sent: tuple[str, str, str]) -> None:
        method, target, key = sent
        plain = target.removeprefix("http://a").partition("?")[0].partition("#")[0]
        status = door.status(method, target, key)
        # A target that is no URL is told so before anybody is asked for a key.
        assert status in (401, 400) or ((method, plain) in OPEN and status == 200), (sent, status)

    any_key = st.sampled_from(sorted(WRONG.values())) | words
    tally.run(
        "routes without a key",
        count,
        st.tuples(st.sampled_from(METHODS), st.sampled_from(targets) | strange, any_key),
        check,
    )
    door.close()


@sizes(3, 60)
def test_requests_ahead_of_their_answers(guarded: Runner, tally: Tally, count: int) -> None:
    before = resident(guarded.process.pid)
    requests = [GET, POST + b"content-length: 2\r\n\r\n{}", GET.replace(b"healthz", b"nowhere"), GET + b"\r\n\r\n"]

    def check(sent: list[bytes]) -> None:
        with connect(guarded.http_port, 4096) as connection:
            flood(connection, b"".join(sent) * (8_000_000 // len(b"".join(sent))), seconds=1.0)
            held(guarded, before)

    tally.run("pipelines", count, st.lists(st.sampled_from(requests), min_size=1, max_size=4), check)


@sizes(8, 200)
def test_heads_without_an_end(guarded: Runner, tally: Tally, count: int) -> None:
    before = resident(guarded.process.pid)

    def check(sent: tuple[str, int]) -> None:
        begun, size = LONG[sent[0]], sent[1]
        with connect(guarded.http_port) as connection:
            flood(connection, begun + begun[-6:] * (size // 6))
            reply = heard_until_reset(connection)
        # Where a key is asked for before the body, the refusal of what is around it has been preceded.
        assert reply.startswith((b"HTTP/1.1 431 ", b"HTTP/1.1 401 ")), (sent[0], reply[:100])
        held(guarded, before)

    tally.run("long heads", count, st.tuples(st.sampled_from(sorted(LONG)), st.integers(0, 16 << 20)), check)


@sizes(60, 900)
def test_connections_that_say_little(guarded: Runner, tally: Tally, count: int) -> None:
    """Many at once, each with half a request and a byte more now and then; others are served, and memory stays."""
    before = resident(guarded.process.pid)
    halves = [b"", b"GET / HT", b"GET / HTTP/1.1\r\nhost: ", POST + b"content-length: 90\r\n\r\n{", POST[:-2]]
    chance = random.Random(count)
    with ExitStack() as stack:
        held_open = [stack.enter_context(connect(guarded.http_port)) for _ in range(count)]
        for connection in held_open:
            connection.sendall(chance.choice(halves))
        for _ in range(20):
            for connection in chance.sample(held_open, count // 10):
                try:
                    connection.sendall(b" ")
                except OSError:  # refused already
                    continue
            scored(guarded)
        held(guarded, before)
        tally.counts["connections that say little"] = count


@sizes(700, 8000)
def test_watches_without_a_key(guarded: Runner, tally: Tally, count: int) -> None:
    before = resident(guarded.process.pid)
    with grpc.insecure_channel(f"{LOOPBACK}:{guarded.grpc_port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        watches = [stub.Watch(health_pb2.HealthCheckRequest()) for _ in range(count)]
        until(lambda: sum(watch.done() for watch in watches) >= count - services.MOST_WATCHES)
        assert stub.Check(health_pb2.HealthCheckRequest(), timeout=20).status == 1
        held(guarded, before)
        for watch in watches:
            watch.cancel()
    tally.counts["watches of health"] = count


def test_a_limit_is_what_the_documents_say() -> None:
    told = (Path(__file__).parents[3] / "docs" / "serving.md").read_text(encoding="utf-8")
    for limit in (
        f"{limits.HEAD_BYTES >> 10} KiB of request line and headers, or {limits.HEAD_FIELDS} of them",
        f"past its first {limits.BODY_S:g} s it has to come at {limits.LEAST_RATE:g} bytes a second",
        f"and be whole in {limits.BODY_TOTAL_S:g} s",
        f"past {limits.HELD_BYTES >> 10} KiB of them no more is read",
        f"{limits.LEAST_RATE:g} bytes a second for {limits.READER_S:g} s",
        f"{services.MOST_WATCHES} may; more are answered",
    ):
        assert limit in told
