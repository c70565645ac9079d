"""One deadline from arrival to the last byte of the answer: templates, encoding, decoding, streams, locks."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from scoring.config import Limits
from scoring.errors import RequestTimeout
from scoring.limits import deadline
from scoring.limits.deadline import Deadline, check, held, interrupting, within
from tests.conftest import Tiny
from tests.scoring.conftest import Serve, Served

LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
#: A loop of the template engine's own, without a line of the template inside.
COUNTS = "{{ range(99999) | map('string') | map('length') | sum }}" * 500


class Clock:
    """A monotonic clock that goes as the test says."""

    def __init__(self) -> None:
        self.now = 0.0

    def after(self, seconds: float, call: Callable[..., Any]) -> Callable[..., Any]:
        """The call, which takes so long."""

        def slow(*arguments: Any, **named: Any) -> Any:
            self.now += seconds
            return call(*arguments, **named)

        return slow


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(deadline, "time", SimpleNamespace(monotonic=lambda: made.now))
    return made


@pytest.fixture
def chat(tiny: Tiny) -> Iterator[Served]:
    served = Served(tiny("qwen2", "conversational"), "conversational", Limits(request_timeout_s=1))
    yield served
    served.service.drain(5)


def late(served: Served, inputs: Any, **more: Any) -> bool:
    """Whether a request is answered 504, and nothing of it is left behind."""
    status, answer = served({"inputs": inputs, **more})
    assert served.service.engine.depth() == 0
    return (status, answer["error"]["code"]) == (504, "request_timeout")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("template", [LOOPS, COUNTS], ids=["loops", "counts"])
def test_a_template_that_loops(template: str, chat: Served) -> None:
    good = chat.service.loaded.tokenizer.chat_template
    chat.service.loaded.tokenizer.chat_template = template
    assert late(chat, [{"role": "user", "content": "Hello"}])
    chat.service.loaded.tokenizer.chat_template = good
    assert chat([{"role": "user", "content": "Hello"}])[0] == 400
    assert chat.ok([{"role": "user", "content": "Hello"}], max_new_tokens=2)


def test_between_the_inputs_of_a_request(
    clock: Clock, tiny: Tiny, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve(tiny("bert", "text-classification"), "text-classification")
    task, encoded = served.service.task, []
    encode = clock.after(40, task.encode)
    monkeypatch.setattr(task, "encode", lambda *a: encoded.append(1) or encode(*a))
    assert late(served, ["a film"] * 9)
    assert len(encoded) == 3  # 40, 80, 120 of 90 s


def test_within_a_text(clock: Clock, tiny: Tiny, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    served = serve(tiny("bert", "text-classification"), "text-classification")
    tokenizer = type(served.service.loaded.tokenizer)
    monkeypatch.setattr(tokenizer, "__call__", clock.after(100, tokenizer.__call__))
    assert late(served, " " * 60_000, parameters={"truncation": True})


@pytest.mark.parametrize(
    ("family", "task", "inputs", "parameters"),
    [
        ("bert", "text-classification", ["a film"] * 9, {}),
        ("bert", "fill-mask", "The [MASK] is.", {}),
        ("roberta", "question-answering", {"question": "Who?", "context": "Anna lives in Bern. " * 90}, {}),
        ("gpt2", "text-generation", "Hello", {"return_details": True, "max_new_tokens": 9}),
    ],
)
def test_while_an_answer_is_decoded(
    family: str,
    task: str,
    inputs: Any,
    parameters: dict[str, Any],
    clock: Clock,
    tiny: Tiny,
    serve: Serve,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    served = serve(tiny(family, task), task)
    decode = clock.after(100, served.service.task.decode)
    monkeypatch.setattr(served.service.task, "decode", decode)
    assert late(served, inputs, parameters=parameters)


def test_between_the_chunks_of_a_stream(clock: Clock, tiny: Tiny, serve: Serve) -> None:
    served = serve(tiny("gpt2", "text-generation"), "text-generation")
    body: Any = served.service.answer(
        json.dumps({"inputs": "Hello", "parameters": {"max_new_tokens": 40}, "stream": True})
    ).body
    assert next(body).startswith(b'data: {"token"')
    clock.now += 100
    assert b"request_timeout" in next(body)
    assert next(body, None) is None


def test_a_tokenizer_that_does_not_come_free(tiny: Tiny, serve: Serve) -> None:
    served = serve(tiny("bert", "text-classification"), "text-classification", Limits(request_timeout_s=0.3))
    with served.service.task.call_tokenizer.turn():
        assert late(served, "a film")
    assert served.ok("a film")


def test_no_seat_among_those_that_are_encoded(tiny: Tiny, serve: Serve) -> None:
    served = serve(tiny("bert", "text-classification"), "text-classification", Limits(request_timeout_s=0.3))
    seats = served.service._seats
    taken = 0
    while seats.acquire(blocking=False):
        taken += 1
    assert late(served, "a film")
    for _ in range(taken):
        seats.release()
    assert served.ok("a film")


def test_a_tracer_that_was_there_is_there_again() -> None:
    import sys

    def tracer(*_: Any) -> None:
        return None

    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        with within(Deadline.after(60)), interrupting():
            assert sys.gettrace() is not tracer
        assert sys.gettrace() is tracer
    finally:
        sys.settrace(before)


def test_without_a_request_nothing_is_late() -> None:
    check()
    with held(threading.Lock()), interrupting():
        check()
    with within(Deadline.after(0)), pytest.raises(RequestTimeout):
        check()
