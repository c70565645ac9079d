"""A server to throw things at, what each reply must be, and a count of what was thrown."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import SearchStrategy

import mii_azure
from local_runner.process.launch import LOOPBACK, Runner
from tests.fork_server import ForkServer, forking

Tiny = Callable[[str, str], Path]
Check = Callable[[Any], None]

#: A reply later than this is a hang.
DEADLINE_S = 60.0
#: What a server may say of itself while it is well.
DOCUMENTED = (503, 504)
ASK = {"inputs": "The king", "parameters": {"max_new_tokens": 4}}
NAME = "under-test"


class Tally:
    """Inputs sent, by what was fuzzed."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def run(self, what: str, count: int, strategy: SearchStrategy[Any], check: Check) -> None:
        """Check `count` inputs of the strategy; a small count is the same inputs each time."""
        options = settings(
            max_examples=count,
            deadline=None,
            database=None,
            derandomize=count < 100,
            # What fails is told whole; making it smaller takes very long where it fails by being late.
            phases=(Phase.generate,),
            suppress_health_check=list(HealthCheck),
        )
        before = self.counts.get(what, 0)

        @options
        @given(strategy)
        def each(value: Any) -> None:
            self.counts[what] = self.counts.get(what, 0) + 1
            check(value)

        each()
        sent = self.counts[what] - before
        assert sent >= count * 0.9, f"only {sent} of {count} inputs of {what} were made"


@pytest.fixture(scope="session")
def tally() -> Iterator[Tally]:
    counted = Tally()
    yield counted
    print(f"\nfuzzed: {json.dumps(counted.counts)}, {sum(counted.counts.values())} inputs")


def sizes(few: int, many: int) -> pytest.MarkDecorator:
    """Run a test on a few inputs always, and on many with `make fuzz`."""
    return pytest.mark.parametrize(
        "count", [few, pytest.param(many, marks=[pytest.mark.fuzz, pytest.mark.timeout(1200)])]
    )


def sound(status: int, body: bytes, sent: Any) -> None:
    """Whatever was sent: no undocumented 5xx, and an error says what it is."""
    text = body.decode()
    assert status < 500 or status in DOCUMENTED, (status, text, sent)
    assert "Traceback (most recent" not in text
    if status >= 400:
        told = json.loads(text)
        # Under /v2 the sentence itself is the error, as the protocol has it.
        error = {**told, "message": told["error"]} if isinstance(told["error"], str) else told["error"]
        assert error["code"] and isinstance(error["code"], str), (text, sent)
        assert error["message"] and isinstance(error["message"], str), (text, sent)


@pytest.fixture(scope="session")
def generating(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that generates text."""
    folder = tmp_path_factory.mktemp("fuzzed") / "bundle"
    model = str(tiny("gpt2", "text-generation"))
    return mii_azure.generate(task="text-generation", model=model, deployment_name=NAME, output=folder)


@pytest.fixture(scope="session")
def _server(generating: Path, fork_server: ForkServer) -> Iterator[Runner]:
    with ExitStack() as stack:
        with forking(fork_server):
            runner = stack.enter_context(Runner(generating, arguments=("--drain-seconds", "2")))
        yield runner


@pytest.fixture
def server(_server: Runner) -> Iterator[Runner]:
    """A runner that must be the same after the test as before it: up, answering, nothing in its log."""
    before = answer(_server)
    yield _server
    assert _server.process.poll() is None
    assert answer(_server) == before
    assert "Traceback" not in _server.log.read_text()


def answer(runner: Runner) -> Any:
    reply = httpx.post(f"http://{LOOPBACK}:{runner.http_port}/score", json=ASK, trust_env=False, timeout=DEADLINE_S)
    assert reply.status_code == 200, reply.text
    return reply.json()
