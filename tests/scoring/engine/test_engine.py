"""The queue and its one thread: batching, bounds, timeouts, poison, draining; and bodies that are no requests."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch

from scoring.api.answers import Reply
from scoring.config import Limits
from scoring.engine.engine import Engine
from scoring.engine.row import Between, Row, nothing
from scoring.errors import NotReady, Overloaded
from scoring.tasks.base import Task
from scoring.telemetry.statistics import Statistics
from tests.conftest import Tiny
from tests.scoring.conftest import Serve, Served
from tests.waiting import until

TASK = "text-classification"


class Gate:
    """Blocks a task's forward until it is opened, and records what each forward was given."""

    def __init__(self, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
        self.served = served
        self.batches: list[list[int]] = []  # the lengths of the rows
        self.entered = threading.Event()
        self.open = threading.Event()
        self.before: Any = lambda rows: None
        forward = served.service.task.forward

        def guarded(rows: Sequence[Row], between: Between) -> list[Any]:
            self.batches.append([row.tokens for row in rows])
            self.entered.set()
            assert self.open.wait(30)
            self.before(rows)
            return forward(rows, between)

        monkeypatch.setattr(served.service.task, "forward", guarded)

    def send(self, inputs: Any) -> Reply:
        return self.served.service.answer(json.dumps({"inputs": inputs}))

    def waiting(self, rows: int) -> None:
        """Return when that many rows wait behind the blocked forward."""
        engine = self.served.service.engine
        until(lambda: len(engine._waiting) == rows)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as pool:
        yield pool


@pytest.fixture
def gated(tiny: Tiny, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> Any:
    def make(**limits: Any) -> Gate:
        return Gate(serve(tiny("bert", TASK), TASK, Limits(**limits)), monkeypatch)

    return make


def block(gate: Gate, pool: ThreadPoolExecutor) -> Future[Reply]:
    """Occupy the inference thread with one request."""
    first = pool.submit(gate.send, "first")
    assert gate.entered.wait(10)
    return first


def body(reply: Reply) -> Any:
    assert isinstance(reply.body, bytes)
    return json.loads(reply.body)


def test_requests_that_wait_together_run_together(gated: Any, pool: ThreadPoolExecutor) -> None:
    gate = gated()
    replies = [block(gate, pool)]
    texts = ["Hello", "What a wonderful house!", "The end", "12", "a longer text than the others were"]
    replies += [pool.submit(gate.send, text) for text in texts]
    gate.waiting(5)
    gate.open.set()
    together = [body(reply.result(30)) for reply in replies]
    assert [len(batch) for batch in gate.batches] == [1, 5]
    alone = [body(gate.send(text)) for text in ["first", *texts]]
    assert [answer[0]["label"] for answer in together] == [answer[0]["label"] for answer in alone]
    scores = torch.tensor([[a[0]["score"], b[0]["score"]] for a, b in zip(together, alone, strict=True)])
    torch.testing.assert_close(scores[:, 0], scores[:, 1], atol=1e-5, rtol=0)


def test_a_batch_keeps_to_its_bounds(gated: Any, pool: ThreadPoolExecutor) -> None:
    gate = gated(max_batch_size=3, max_batch_tokens=60)
    first = block(gate, pool)
    listed = pool.submit(gate.send, ["a"] * 7 + ["a b c d e f g h i j k l m n o p q r s t u v w x y z"])
    gate.waiting(8)
    gate.open.set()
    assert first.result(30).status == 200
    assert len(body(listed.result(30))) == 8
    assert len(gate.batches) > 3
    for batch in gate.batches:
        assert len(batch) <= 3
        assert len(batch) == 1 or max(batch) * len(batch) <= 60


def test_a_full_queue_is_429_with_the_time_to_wait(gated: Any, pool: ThreadPoolExecutor) -> None:
    gate = gated(queue_size=3)
    first = block(gate, pool)
    waiting = pool.submit(gate.send, ["a", "b"])
    gate.waiting(2)
    refused = gate.send(["c", "d"])
    assert refused.status == 429
    assert refused.headers == {"Retry-After": "1"}
    assert body(refused)["error"]["code"] == "overloaded"
    gate.open.set()
    assert [first.result(30).status, waiting.result(30).status] == [200, 200]
    assert gate.send(["c", "d"]).status == 200


def test_limits_change_for_the_requests_to_come(gated: Any, pool: ThreadPoolExecutor) -> None:
    gate = gated(queue_size=1, request_timeout_s=60)
    first = block(gate, pool)
    waiting = pool.submit(gate.send, "a")
    gate.waiting(1)
    assert gate.send("b").status == 429
    gate.served.service.change(queue_size=3, request_timeout_s=0.2)
    assert gate.send("b").status == 504
    gate.open.set()
    assert [first.result(30).status, waiting.result(30).status] == [200, 200]


def test_more_rows_than_the_queue_holds_can_never_be_answered(gated: Any) -> None:
    gate = gated(queue_size=3)
    gate.open.set()
    refused = gate.send(["a", "b", "c", "d"])
    assert refused.status == 400
    assert body(refused)["error"]["where"] == "inputs"


def test_a_timeout_is_504_and_frees_its_place(
    gated: Any, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = gated(request_timeout_s=0.3, queue_size=2)
    service = gate.served.service
    first = block(gate, pool)
    late = gate.send(["a", "b"])
    assert late.status == 504
    assert body(late)["error"]["code"] == "request_timeout"
    assert first.result(30).status == 504
    patient = replace(service.deployment, limits=replace(service.deployment.limits, request_timeout_s=30))
    monkeypatch.setattr(service, "deployment", patient)
    last = pool.submit(gate.send, ["c", "d"])  # would not fit beside the two that nobody waits for
    until(lambda: not any(row.cancelled.is_set() for _, _, row in list(service.engine._waiting)))
    gate.open.set()
    assert last.result(30).status == 200
    assert [len(batch) for batch in gate.batches] == [1, 2]


def test_poison_fails_alone(gated: Any, pool: ThreadPoolExecutor, caplog: pytest.LogCaptureFixture) -> None:
    gate = gated()
    poison = len(gate.served.service.loaded.tokenizer("poison of a length of its own")["input_ids"])

    def fail(rows: Sequence[Row]) -> None:
        if any(row.tokens == poison for row in rows):
            raise RuntimeError("secret of the house")

    gate.before = fail
    replies = [block(gate, pool)]
    replies += [pool.submit(gate.send, text) for text in ("a", "poison of a length of its own", ["b", "c"])]
    gate.waiting(4)
    gate.open.set()
    assert [reply.result(30).status for reply in replies] == [200, 200, 500, 200]
    error = body(replies[2].result())["error"]
    assert error["code"] == "internal"
    assert "secret" not in json.dumps(error)
    incident = error["message"].split()[-1].rstrip(".")
    assert f"incident {incident}" in caplog.text
    assert "secret of the house" in caplog.text


def test_a_batch_too_large_for_the_memory_is_halved(gated: Any) -> None:
    gate = gated()
    gate.open.set()

    def fail(rows: Sequence[Row]) -> None:
        if len(rows) > 2:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")

    gate.before = fail
    reply = gate.send(["a", "b", "c", "d", "e"])
    assert (reply.status, len(body(reply))) == (200, 5)
    assert [len(batch) for batch in gate.batches] == [5, 2, 3, 1, 2]


def test_a_row_that_does_not_fit_the_memory_is_413_and_503_where_it_once_did(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, pool: ThreadPoolExecutor
) -> None:
    served = Served(tiny("bert", TASK), TASK)
    gate = Gate(served, monkeypatch)
    large = "a longer text than the others were"
    length = {text: len(served.service.loaded.tokenizer(text)["input_ids"]) for text in ("a", large)}
    most = length["a"]

    def fail(rows: Sequence[Row]) -> None:
        if any(row.tokens > most for row in rows):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    gate.before = fail
    replies = [block(gate, pool), *(pool.submit(gate.send, text) for text in ("a", large, ["a", "a"]))]
    gate.waiting(4)
    gate.open.set()
    most = length["a"]
    answers = [reply.result(30) for reply in replies]
    error = body(gate.send(large))["error"]
    assert [answer.status for answer in answers[1:]] == [200, 413, 200]
    assert error["message"] == (
        f"{length[large]} tokens do not fit the device's memory; "
        f"requests of up to {length['a']} tokens have been served."
    )
    most = length[large]
    assert gate.send(large).status == 200
    most = length["a"]
    reply = gate.send(large)
    assert (reply.status, body(reply)["error"]["code"]) == (503, "device_full")
    assert reply.headers == {"Retry-After": "1"}
    assert gate.send("a").status == 200
    assert served.service.drain(5)


def test_numbers_that_are_not_finite_are_an_error(gated: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = gated()
    monkeypatch.setattr(gate.served.service.task, "forward", lambda rows, _: [torch.full((3,), torch.nan)] * len(rows))
    reply = gate.send("a")
    assert reply.status == 500
    assert "--dtype" in body(reply)["error"]["hint"]


@pytest.mark.parametrize("task", [TASK, "text-generation"])
def test_the_inference_thread_is_always_the_same(
    task: str, tiny: Tiny, serve: Serve, monkeypatch: pytest.MonkeyPatch, pool: ThreadPoolExecutor
) -> None:
    served = serve(tiny("bert" if task == TASK else "gpt2", task), task)
    threads = set()
    forward = served.service.loaded.model.forward

    def spy(*args: Any, **kwargs: Any) -> Any:
        threads.add(threading.current_thread().name)
        return forward(*args, **kwargs)

    monkeypatch.setattr(served.service.loaded.model, "forward", spy)
    list(pool.map(lambda text: served.ok(text), ["a", "b", "c", "d"]))
    assert threads == {"inference"}


class Slow(Task):
    """A task without a model: answers the length of a row, when it is let."""

    name = "slow"

    def __init__(self) -> None:
        self.statistics = Statistics()
        self.go = threading.Event()
        self.go.set()
        self.outputs: Any = lambda rows: [row.tokens for row in rows]

    def encode(self, value: Any, parameters: Any, item: int) -> list[Row]:
        raise NotImplementedError

    def decode(self, value: Any, parameters: Any, rows: Sequence[Row], outputs: Sequence[Any]) -> Any:
        raise NotImplementedError

    def forward(self, rows: Sequence[Row], between: Between = nothing) -> list[Any]:
        assert self.go.wait(30)
        answers: list[Any] = self.outputs(rows)
        return answers

    def warm_up(self) -> None:
        """Nothing to warm."""


def rows(*lengths: int, key: Any = None) -> list[Row]:
    return [Row({"input_ids": [0] * length}, item, key) for item, length in enumerate(lengths)]


@pytest.fixture
def slow() -> Iterator[tuple[Slow, Engine]]:
    task = Slow()
    engine = Engine(task, Limits(queue_size=4))
    engine.start()
    yield task, engine
    task.go.set()
    assert engine.drain(10)


def test_draining_finishes_what_was_accepted_and_takes_no_more(slow: tuple[Slow, Engine]) -> None:
    task, engine = slow
    task.go.clear()
    jobs = [engine.submit(rows(2, 3)), engine.submit(rows(4, key="other"))]
    assert not engine.drain(0.05)
    with pytest.raises(NotReady) as refused:
        engine.submit(rows(1))
    assert refused.value.http_status == 503
    task.go.set()
    assert engine.drain(10)
    assert [job.future.result(0) for job in jobs] == [[2, 3], [4]]
    assert engine.depth() == 0


def test_a_drained_service_answers_503(tiny: Tiny) -> None:
    served = Served(tiny("bert", TASK), TASK)
    assert served.service.drain(10)
    status, answer = served({"inputs": "a"})
    assert (status, answer["error"]["code"]) == (503, "not_ready")
    status, facts = served({"mii_azure": "metadata"})
    assert (status, facts["ready"]) == (200, False)
    assert facts["statistics"].items() < served.service.statistics().items()
    assert facts["statistics"]["first_token"]["buckets"][-1] == ["+Inf", 0]


def test_rows_with_other_keys_run_apart_and_none_starves(slow: tuple[Slow, Engine]) -> None:
    task, engine = slow
    batches: list[list[int]] = []

    def record(batch: Sequence[Row]) -> list[int]:
        batches.append([row.tokens for row in batch])
        return [row.tokens for row in batch]

    task.outputs = record
    task.go.clear()
    jobs = [engine.submit(rows(1))]
    until(lambda: engine._running == 1)
    jobs += [engine.submit(rows(length, key=key)) for length, key in [(2, "a"), (3, "b"), (4, "a"), (5, "b")]]
    task.go.set()
    assert [job.future.result(10) for job in jobs] == [[1], [2], [3], [4], [5]]
    assert batches == [[1], [2, 4], [3, 5]]


def test_a_task_that_answers_too_few_rows_does_not_stop_the_engine(slow: tuple[Slow, Engine]) -> None:
    task, engine = slow
    task.outputs = lambda batch: [0]
    with pytest.raises(ValueError, match="shorter"):
        engine.submit(rows(1, 2)).future.result(10)
    assert engine.submit(rows(1)).future.result(10) == [0]


def test_after_a_failure_the_rest_of_a_request_is_not_run(slow: tuple[Slow, Engine]) -> None:
    task, engine = slow
    ran: list[int] = []

    def fail(batch: Sequence[Row]) -> list[int]:
        ran.extend(row.tokens for row in batch)
        raise RuntimeError("broken")

    task.outputs = fail
    job = engine.submit([*rows(1, key="a"), *rows(2, key="b")])
    with pytest.raises(RuntimeError, match="broken"):
        job.future.result(10)
    task.outputs = lambda batch: [0] * len(batch)
    assert engine.submit(rows(9)).future.result(10) == [0]
    assert ran == [1]


def test_the_queue_takes_any_request_when_it_is_empty(slow: tuple[Slow, Engine]) -> None:
    task, engine = slow
    assert engine.submit(rows(1, 2, 3, 4, 5)).future.result(10) == [1, 2, 3, 4, 5]
    task.go.clear()
    engine.submit(rows(1))
    until(lambda: engine._running == 1)
    engine.submit(rows(1, 2, 3))
    with pytest.raises(Overloaded):
        engine.submit(rows(1, 2))


def test_a_warm_up_that_fails_fails_the_start() -> None:
    task = Slow()
    task.warm_up = lambda: (_ for _ in ()).throw(RuntimeError("no kernel"))  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="no kernel"):
        Engine(task, Limits()).start()


BODIES = {
    "empty": "",
    "blank": " \n",
    "no JSON": "inputs",
    "cut short": '{"inputs": "a',
    "trailing": '{"inputs": "a"} x',
    "NaN": '{"inputs": "a", "parameters": {"top_k": NaN}}',
    "Infinity": '{"inputs": "a", "parameters": {"top_k": -Infinity}}',
    "overflow": '{"inputs": "a", "parameters": {"top_k": 1e999}}',
    "deep list": '{"inputs": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "deep object": '{"inputs": ' + '{"a":' * 100_000 + "1" + "}" * 100_000 + "}",
    "rather deep": '{"inputs": ' + "[" * 500 + "]" * 500 + "}",
    "half a pair": '{"inputs": "\\ud800"}',
    "the other half": '{"inputs": "a \\udc00 b"}',
    "half a pair as it stands": '{"inputs": "\ud800"}',
    "half a pair in a parameter": '{"inputs": "a", "parameters": {"function_to_apply": "\\ud800"}}',
    "half a pair in a name": '{"\\ud800": "a"}',
    "half a pair in a list": '{"inputs": ["a", "\\ud83d"]}',
    "null": "null",
    "list": "[]",
    "string": '"a"',
    "no inputs": "{}",
    "both": '{"inputs": "a", "input_data": ["a"]}',
    "unknown field": '{"inputs": "a", "input": "b"}',
    "null inputs": '{"inputs": null}',
    "number": '{"inputs": 1}',
    "huge number": '{"inputs": ' + "9" * 5000 + "}",
    "empty text": '{"inputs": ""}',
    "empty list": '{"inputs": []}',
    "mixed": '{"inputs": ["a", 1]}',
    "nested": '{"inputs": [["a"]]}',
    "parameters": '{"inputs": "a", "parameters": []}',
    "parameter": '{"inputs": "a", "parameters": {"top_k": "1"}}',
    "unknown parameter": '{"inputs": "a", "parameters": {"topk": 1}}',
    "stream": '{"inputs": "a", "stream": 1}',
    "options": '{"inputs": "a", "options": {"wait": true}}',
    "control character": '{"inputs": "a\x00b"}',
    "wrong pair": '{"inputs": {"text": "a", "pair": "b"}}',
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_a_bad_body_is_400_with_a_sentence(body: str, tiny: Tiny, serve: Serve) -> None:
    status, answer = serve(tiny("bert", TASK), TASK)(body)
    assert status == 400, answer
    error = answer["error"]
    assert not error["message"][0].islower()
    assert error["message"].endswith(".")
    assert len(error["message"]) < 300


def test_a_whole_pair_is_text(tiny: Tiny, serve: Serve) -> None:
    status, answer = serve(tiny("bert", TASK), TASK)('{"inputs": "\\ud83d\\ude00"}')
    assert status == 200, answer


@pytest.mark.parametrize("text", ["x" * (10 << 20), "é" * (2 << 20) + "é"], ids=["characters", "bytes"])
def test_a_body_past_the_limit_is_413(text: str, tiny: Tiny, serve: Serve) -> None:
    status, answer = serve(tiny("bert", TASK), TASK)({"inputs": text} if text[0] == "x" else f'{{"inputs": "{text}"}}')
    assert (status, answer["error"]["code"]) == (413, "payload_too_large")
