"""Every target over one bundle: the same replies, whichever way they are fetched."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from local_runner.targets.targets import TARGETS, Target, make_target
from mii_azure.errors import BundleEdited, RunnerFailed
from scoring.errors import LoadError
from tests.local_runner.conftest import MAX_PAYLOAD
from tests.waiting import until

BODIES = [
    '{"inputs": "a"}',
    '{"inputs": ["a", "ü", "\\ud83d\\ude00"], "parameters": {"k": null}}',
    '{"inputs": "status:400"}',
    '{"inputs": "status:429"}',
    '{"inputs": "print"}',
    '{"inputs": "a b", "stream": true}',
    '{"inputs": "a fail", "stream": true}',
    '{"inputs": "status:400", "stream": true}',
    "{",
    "",
    "[1]",
    '"' + "x" * MAX_PAYLOAD + '"',
]


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that gains a line with each request that waits in a target."""
    return tmp_path_factory.mktemp("busy") / "log"


@pytest.fixture(scope="module", params=list(TARGETS))
def target(request: pytest.FixtureRequest, bundle: Path, busy: Path) -> Iterator[Target]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STUB_BUSY", str(busy))
        with make_target(request.param, bundle) as started:
            yield started


@pytest.fixture(scope="module")
def expected(bundle: Path) -> list[tuple[int, bytes]]:
    """What score.py answers when called directly."""
    with make_target("in-process", bundle) as direct:
        return [(reply.status, reply.body) for reply in map(direct.send, BODIES)]


def test_the_reference_is_what_the_script_says(expected: list[tuple[int, bytes]]) -> None:
    assert [status for status, _ in expected] == [200, 200, 400, 429, 200, 200, 200, 400, 400, 400, 400, 413]
    assert expected[0][1] == b'{"echo": "A"}'
    assert expected[5][1].endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("at", range(len(BODIES)), ids=[body[:30] for body in BODIES])
def test_replies_are_the_same_bytes(target: Target, expected: list[tuple[int, bytes]], at: int) -> None:
    reply = target.send(BODIES[at])
    assert (reply.status, reply.body) == expected[at]
    assert reply.seconds > 0


def test_metadata_says_whose_scoring_package_runs(target: Target, bundle: Path) -> None:
    assert target.metadata()["scoring"] == str(bundle / "code" / "scoring" / "__init__.py")


def test_a_load_has_its_clients_in_flight_together(target: Target, tmp_path: Path, busy: Path) -> None:
    gate = tmp_path / "gate"
    busy.write_text("")

    def open_when_all_wait() -> None:
        try:
            until(lambda: len(busy.read_text().splitlines()) >= 4, 20)
        finally:
            gate.touch()

    opener = threading.Thread(target=open_when_all_wait)
    opener.start()
    load = target.measure([f'{{"inputs": "until:{gate}"}}', '{"inputs": "status:400"}'], requests=8, clients=5)
    opener.join()
    assert load.elapsed < 20
    assert load.statuses == (200, 400) * 4
    assert load.elapsed >= max(load.seconds)


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_that_does_not_load_says_why(bundle: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("STUB_LOAD", "fail")
    error = RunnerFailed if name in ("azmlinfsrv", "container") else LoadError  # both are Azure's server here
    with pytest.raises(error, match="The stub does not load"), make_target(name, bundle):
        pass


@pytest.mark.parametrize("name", TARGETS)
def test_no_target_runs_an_edited_bundle(own_bundle: object, name: str) -> None:
    bundle = own_bundle()  # type: ignore[operator]
    (bundle / "code" / "scoring" / "entry.py").write_text("")
    with pytest.raises(BundleEdited, match=r"code/scoring/entry.py \(edited\)"), make_target(name, bundle):
        pass
