"""What of --engine ray needs no cluster: options, the bundle's way to a node, and who is asked again when."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from local_runner.__main__ import _parser
from local_runner.errors import ReplicaLost, RunnerFailed
from local_runner.host.host import HostState
from local_runner.replicas.frontend import Frontend
from local_runner.replicas.ray import bundle_actor, bundle_copy, options
from local_runner.replicas.ray.cluster import Replicas
from local_runner.replicas.ray.pool import RayPool
from local_runner.replicas.ray.worker import FAILED, failure
from mii_azure.errors import BundleEdited
from scoring.errors import InternalError, NotReady, Overloaded, RequestTimeout
from tests.waiting import until_async

WHOLE = (200, {}, b'{"echo": "A"}')


class Gone(Exception):
    """What Ray raises for a replica that is gone."""


class ActorUnavailableError(Gone):
    """What it raises for one that is not reached."""


class Reply:
    """A call through a handle: an answer to await, or items to iterate; an exception among them is raised."""

    def __init__(self, *items: Any) -> None:
        self.items = list(items)
        self.cancelled = False

    def __await__(self) -> Any:
        return self.__anext__().__await__()

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        await asyncio.sleep(0)
        if not self.items:
            raise StopAsyncIteration
        if isinstance(item := self.items.pop(0), BaseException):
            raise item
        if item == "hang":
            await asyncio.sleep(60)
        return item

    def cancel(self) -> None:
        self.cancelled = True


class Handle:
    """Gives its replies one by one, and keeps what was asked."""

    def __init__(self, *replies: Reply) -> None:
        self.replies = list(replies)
        self.given: list[Reply] = []
        self.asked: list[tuple[str, dict[str, str]]] = []

    def remote(self, raw: str, headers: dict[str, str]) -> Reply:
        self.asked.append((raw, headers))
        self.given.append(self.replies.pop(0))
        return self.given[-1]


def front(bundle: Path, monkeypatch: pytest.MonkeyPatch, unary: Handle, streaming: Handle | None = None) -> Frontend:
    """A front that is ready, with one replica behind these handles."""
    monkeypatch.setattr(RayPool, "pause_s", 0.0)
    pool = RayPool(bundle, options.RayOptions())
    pool._unary, pool._streaming, pool._lost = unary, streaming or Handle(), (Gone,)
    pool._replicas = Replicas(running=1)
    host = Frontend(bundle, pool)
    host.change(HostState.READY)
    return host


async def read(host: Frontend, raw: str) -> list[bytes]:
    answer = await host.score(raw, {})
    return [piece async for piece in host.chunks(answer)]


async def test_a_lost_request_is_asked_of_another_replica(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unary = Handle(Reply(Gone()), Reply(Gone()), Reply(WHOLE))
    host = front(bundle, monkeypatch, unary)
    answer = await host.score("a", {"X-Request-Id": "1", "Authorization": "Bearer secret", "x-api-key": "secret"})
    assert (answer.status, answer.body) == (200, WHOLE[2])
    assert unary.asked == [("a", {"x-request-id": "1"})] * 3, "the same request, without the front's credentials"
    assert host.statistics()["asked_again"] == 2
    assert host._in_flight == 0


async def test_a_request_that_ends_replicas_is_not_asked_for_ever(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unary = Handle(*(Reply(Gone()) for _ in range(9)))
    with pytest.raises(ReplicaLost, match="3 replicas ended while they held this request"):
        await front(bundle, monkeypatch, unary).score("a", {})
    assert len(unary.asked) == 3
    assert (ReplicaLost.http_status, ReplicaLost.grpc_status) == (503, "UNAVAILABLE")


async def test_a_replica_that_is_not_reached_does_not_count_as_ended(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unary = Handle(*(Reply(ActorUnavailableError()) for _ in range(9)), Reply(WHOLE))
    assert (await front(bundle, monkeypatch, unary).score("a", {})).status == 200


def test_a_front_without_a_replica_is_not_called_ready(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = front(bundle, monkeypatch, Handle())
    assert (host.condition, host.statistics()["phase"]) == (HostState.READY, "ready")
    host._pool._replicas = Replicas()
    assert (host.condition, host.statistics()["phase"]) == (HostState.LOADING, "loading")


async def test_a_replica_that_answers_runs_whatever_the_last_look_said(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = front(bundle, monkeypatch, Handle(Reply(WHOLE), Reply(WHOLE)))
    asking = asyncio.create_task(host.score("a", {}))
    await asyncio.sleep(0)
    host._pool._replicas = Replicas()
    assert (await asking).status == 200
    assert (await host.score("a", {})).status == 200


@pytest.mark.parametrize("code", ["not_ready", "rank_lost"])
async def test_a_replica_that_stops_or_broke_leaves_the_request_to_another(
    code: str, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = json.dumps({"error": {"code": code, "message": "no"}}).encode()
    unary = Handle(Reply((503, {}, refused)), Reply(WHOLE))
    assert (await front(bundle, monkeypatch, unary).score("a", {})).status == 200


async def test_other_refusals_are_the_answer(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for status, code in ((503, "device_full"), (429, "overloaded"), (400, "invalid_json"), (500, "internal")):
        body = json.dumps({"error": {"code": code, "message": "no"}}).encode()
        unary = Handle(Reply((status, {"Retry-After": "7"}, body)))
        answer = await front(bundle, monkeypatch, unary).score("a", {})
        assert (answer.status, answer.headers, answer.body) == (status, {"Retry-After": "7"}, body)


async def test_a_timeout_and_a_client_that_leaves_cancel_the_call(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, own_bundle: Callable[..., Path]
) -> None:
    monkeypatch.setattr("local_runner.replicas.frontend._GRACE_S", 0.0)
    unary = Handle(Reply("hang"))
    with pytest.raises(RequestTimeout):
        await front(own_bundle(request_timeout_s=0.05), monkeypatch, unary).score("a", {})
    assert unary.given[0].cancelled
    left = Handle(Reply("hang"))
    host = front(bundle, monkeypatch, left)
    asking = asyncio.create_task(host.score("a", {}))
    await until_async(lambda: host._in_flight == 1 and left.given)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert left.given[0].cancelled and host._in_flight == 0


async def test_an_unforeseen_failure_is_ours_and_not_asked_again(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InternalError, match="failed here"):
        await front(bundle, monkeypatch, Handle(Reply(ValueError("secret")))).score("a", {})


async def test_a_stream_is_begun_again_only_before_its_first_piece(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw, head = '{"inputs": "a", "stream": true}', (200, {"Content-Type": "text/event-stream"}, None)
    again = Handle(Reply(Gone()), Reply(head, Gone()), Reply(head, b"data: 1\n\n", b"data: [DONE]\n\n"))
    host = front(bundle, monkeypatch, Handle(), again)
    assert await read(host, raw) == [b"data: 1\n\n", b"data: [DONE]\n\n"]
    assert host.statistics()["asked_again"] == 2
    broken = Handle(Reply(head, b"data: 1\n\n", Gone()))
    host = front(bundle, monkeypatch, Handle(), broken)
    *pieces, last = await read(host, raw)
    assert pieces == [b"data: 1\n\n"]
    assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "replica_lost"
    assert host._in_flight == 0


async def test_leaving_a_stream_cancels_it_but_its_end_does_not(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head = (200, {}, None)
    streaming = Handle(Reply(head, b"1", b"2"), Reply(head, b"1"))
    host = front(bundle, monkeypatch, Handle(), streaming)
    chunks = host.chunks(await host.score('{"stream": true}', {}))
    assert await anext(chunks) == b"1"
    await chunks.aclose()
    assert await read(host, '{"stream": true}') == [b"1"]
    assert [reply.cancelled for reply in streaming.given] == [True, False]


async def test_a_guess_about_streaming_costs_nothing_but_time(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = front(bundle, monkeypatch, Handle(Reply(None)), Handle(Reply((200, {}, None), b"1")))
    assert await read(hidden, '{"str\\u0065am": true}') == [b"1"]
    mentioned = front(bundle, monkeypatch, Handle(), Handle(Reply(WHOLE)))
    assert (await mentioned.score('{"inputs": "stream"}', {})).body == WHOLE[2]


async def test_the_front_refuses_without_replicas_and_past_their_slots(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = front(bundle, monkeypatch, Handle())
    host._busy = host._slots
    with pytest.raises(Overloaded):
        await host.score("a", {})
    host._busy, host._pool._replicas = 0, Replicas(states={"STARTING": 2})
    assert not host.ready
    with pytest.raises(NotReady, match="No replica is ready: 2 are starting"):
        await host.score("a", {})


def sizes(folder: Path) -> dict[str, int]:
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


def reader(folder: Path, calls: list[str]) -> bundle_copy.Read:
    def read(pieces: list[tuple[str, int, int]]) -> Iterator[bytes]:
        for path, offset, size in pieces:
            calls.append(path)
            yield (folder / path).read_bytes()[offset : offset + size]

    return read


def test_a_bundle_is_copied_once_and_verified(
    own_bundle: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle_copy, "PIECE", 100)
    bundle, calls = own_bundle(), []  # type: ignore[var-annotated]
    wanted = bundle_copy.reference(bundle, "desk")
    assert bundle_copy.locate(wanted, "unused") == bundle
    copy = bundle_copy.fetch(wanted.digest, sizes(bundle), reader(bundle, calls), tmp_path / "nodes")
    assert copy != bundle and sizes(copy) == sizes(bundle)
    assert len(calls) > len(sizes(bundle)), "long files in several pieces"
    calls.clear()
    assert bundle_copy.fetch(wanted.digest, sizes(bundle), reader(bundle, calls), tmp_path / "nodes") == copy
    assert not calls


def test_a_copy_that_is_not_the_bundle_is_not_kept(own_bundle: Callable[..., Path], tmp_path: Path) -> None:
    bundle = own_bundle()
    wanted = bundle_copy.reference(bundle, "desk")
    (bundle / "model" / "config.json").write_text("{}")
    with pytest.raises(BundleEdited, match=r"model/config\.json"):
        bundle_copy.fetch(wanted.digest, sizes(bundle), reader(bundle, []), tmp_path / "nodes")
    assert not (tmp_path / "nodes" / wanted.digest).exists()
    with pytest.raises(RunnerFailed, match="outside itself"):
        bundle_copy.fetch("x", {"../code/score.py": 1}, lambda pieces: [b""] * len(pieces), tmp_path / "nodes")
    with pytest.raises(RunnerFailed, match=r"needs 1,000,000,000,000,000,000 bytes"):
        bundle_copy.fetch("x", {"a": 10**18}, reader(bundle, []), tmp_path / "nodes")


@pytest.mark.parametrize("digest", ["../victim", "ABSOLUTE"])
def test_a_hash_that_is_a_path_removes_nothing(tmp_path: Path, digest: str) -> None:
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "thesis.tex").write_text("years")
    named = str(tmp_path / "victim") if digest == "ABSOLUTE" else digest
    with pytest.raises(RunnerFailed, match="no hash of a bundle"):
        bundle_copy.fetch(named, {}, lambda pieces: [], tmp_path / "nodes")
    assert (tmp_path / "victim" / "thesis.tex").read_text() == "years"


def test_a_folder_that_others_may_write_in_holds_no_bundles(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(RunnerFailed, match="others may write"):
        bundle_copy.fetch("x", {}, lambda pieces: [], tmp_path / "open")
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(RunnerFailed, match="others may write"):
        bundle_copy.fetch("x", {}, lambda pieces: [], tmp_path / "link")


def test_the_desk_reads_out_the_bundle_and_nothing_else(bundle: Path) -> None:
    desk = bundle_actor.BundleActor(str(bundle))
    assert desk.read("manifest.json", 1, 5) == (bundle / "manifest.json").read_bytes()[1:6]
    assert desk.sizes() == sizes(bundle)
    for path in ("../../etc/passwd", "/etc/passwd", "environment"):
        with pytest.raises(KeyError):
            desk.read(path, 0, 1)


def test_the_desk_sums_replicas_and_forgets_no_count(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("local_runner.replicas.ray.bundle_actor.time.monotonic", lambda: now[0])
    desk = bundle_actor.BundleActor(str(bundle))
    assert desk.total() == {}

    def told(tokens: int, waiting: int) -> dict[str, Any]:
        buckets = [["0.5", tokens], ["+Inf", tokens + 1]]
        return {"generated_tokens": tokens, "waiting": waiting, "stages": {"queue": {"buckets": buckets, "sum": 0.5}}}

    desk.report("a", told(1, 5))
    desk.report("a", told(2, 3))
    desk.report("b", told(10, 1))
    both = {"buckets": [["0.5", 12], ["+Inf", 14]], "sum": 1.0}
    assert desk.total() == {"generated_tokens": 12, "waiting": 4, "stages": {"queue": both}}
    now[0] += 20
    desk.report("b", told(11, 0))
    for _ in range(2):  # a is gone, and is not counted twice
        assert (desk.total()["generated_tokens"], desk.total()["waiting"]) == (13, 0)


def test_a_replica_tells_its_error_through_ray_serves_status() -> None:
    body = {"error": {"code": "load_failed", "message": "It does not load: {", "hint": "Mend it."}}
    assert failure(f"Traceback\n  x\nReplicaFailed: {FAILED}{json.dumps(body)}\nmore }}") == body
    assert failure("Traceback: nothing of ours") is None
    assert failure(f"{FAILED}{json.dumps(body)[:20]}") is None


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--min-replicas", "0"), "from 1 upwards"),
        (("--min-replicas", "3", "--max-replicas", "2"), "from 1 upwards, in order"),
        (("--replica-cpus", "-1"), "not negative"),
        (("--ray-address", "ray://head:10001"), "HOST:PORT"),
        (("--engine", "other"), "invalid choice"),
    ],
)
def test_options_that_make_no_sense(
    arguments: tuple[str, ...], says: str, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parser = _parser()
        options.read(parser, parser.parse_args([str(bundle), "--engine", "ray", *arguments]))
    assert ended.value.code == 2
    assert says in capsys.readouterr().err


def test_options_and_their_twins(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*arguments: str) -> options.RayOptions | None:
        parser = _parser()
        return options.read(parser, parser.parse_args([str(bundle), *arguments]))

    assert read() is None
    assert read("--engine", "ray") == options.RayOptions()
    for name, value in {"ENGINE": "ray", "MIN_REPLICAS": "2", "REPLICA_GPUS": "0.5", "RAY_ADDRESS": "a:1"}.items():
        monkeypatch.setenv(f"MII_AZURE_{name}", value)
    assert read("--max-replicas", "5") == options.RayOptions(2, 5, gpus=0.5, address="a:1")


def test_without_ray_a_sentence_and_a_remedy(bundle: Path, tmp_path: Path) -> None:
    ready = tmp_path / "ready.json"
    arguments = [str(bundle), "--engine", "ray", "--grpc-port", "0", "--http-port", "0", "--ready-file", str(ready)]
    code = f"import sys; sys.modules['ray'] = None; from local_runner.__main__ import main; main({arguments!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ})
    assert done.returncode == 4
    assert "error [ray_missing]: --engine ray needs Ray Serve" in done.stderr
    assert "pip install 'mii-azure[ray]'" in done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads(ready.read_text())["error"]["code"] == "ray_missing"
