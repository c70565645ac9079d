"""A front end answers, byte for byte, as the engine's process does; both ends here are threads of one process."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from scoring.api.answers import Reply
from scoring.config import Limits
from scoring.decoder.decoder import Decoder
from scoring.front_ends import engine_server
from scoring.front_ends.engine_server import EngineServer
from scoring.front_ends.messages import State
from scoring.front_ends.remote_answers import RemoteAnswers, build
from scoring.front_ends.remote_engine import RemoteEngine
from tests.scoring.conftest import Serve, Served
from tests.waiting import until

TEXT = "The old bridge over the river was closed until noon, and the rain went on."
GENERATING: tuple[dict[str, Any], ...] = (
    {"inputs": TEXT, "parameters": {"max_new_tokens": 9}},
    {"inputs": [TEXT, "Rain."], "parameters": {"max_new_tokens": 5, "return_details": True, "top_n_tokens": 2}},
    {"inputs": TEXT, "parameters": {"max_new_tokens": 20}, "stream": True},
    {"inputs": TEXT, "parameters": {"max_new_tokens": 1}, "stream": True},
    {"inputs": TEXT, "parameters": {"max_new_tokens": 30, "stop": ["e", "a"]}, "stream": True},
    {
        "inputs": TEXT,
        "parameters": {"max_new_tokens": 12, "return_details": True, "top_n_tokens": 2, "stop": ["zz"]},
        "stream": True,
        "options": {"usage": True},
    },
    {
        "inputs": TEXT,
        "parameters": {"max_new_tokens": 6, "do_sample": True, "seed": 3, "num_return_sequences": 3},
        "options": {"usage": True},
    },
    {"inputs": TEXT, "parameters": {"max_new_tokens": 6, "num_beams": 2}, "stream": True},
    {"inputs": TEXT, "parameters": {"max_new_tokens": 6, "no_repeat_ngram_size": 2}, "stream": True},
    {"inputs": TEXT, "parameters": {"max_new_tokens": 1 << 20}},
    {"inputs": TEXT, "parameters": {"max_new_tokens": 9, "guided_regex": "[a-e]{2,6}"}, "stream": True},
    {"inputs": TEXT, "parameters": {"max_new_tokens": 9, "guided_regex": "["}},
    {
        "inputs": TEXT,
        "parameters": {"max_new_tokens": 12, "presence_penalty": 2, "logit_bias": {"5": 4.0}, "stop_token_ids": [9]},
        "stream": True,
    },
    {"inputs": TEXT, "parameters": {"max_new_tokens": 2, "return_details": True, "prompt_logprobs": 2, "priority": 3}},
    {"inputs": TEXT, "parameters": {"max_new_tokens": 9, "temperature": 0.8, "seed": 2, "min_p": 0.2}},
    {"inputs": TEXT, "parameters": {"temperature": "hot"}},
    {"inputs": 3},
)
CASES = [
    ("llama", "text-generation", GENERATING),
    ("t5", "summarization", GENERATING[:3]),
    ("bert", "text-classification", ({"inputs": [TEXT, "Rain."]},)),
    ("bert", "token-classification", ({"inputs": TEXT},)),
    ("bert", "question-answering", ({"inputs": {"question": "What closed?", "context": TEXT}},)),
    ("bert", "fill-mask", ({"inputs": "The [MASK] is old."},)),
    ("bert", "sentence-embeddings", ({"inputs": [TEXT, "Rain."]},)),
]


@pytest.fixture(scope="module")
def on_slots(tiny: Any) -> Iterator[tuple[Served, Path]]:
    folder = tiny("llama", "text-generation")
    served = Served(folder, "text-generation", Limits(queue_size=8))
    loaded = served.service.loaded
    loaded.runtime.decoder = Decoder(loaded.model, 4, loaded.context_length)
    yield served, folder
    served.service.drain(5)


@contextmanager
def front_end(served: Served, folder: Path) -> Iterator[tuple[RemoteAnswers, EngineServer]]:
    """A front end of a served model, and the server of its engine."""
    here, there = socket.socketpair()
    server = EngineServer(lambda: State(served.service.ready, phase="ready"))
    server.attach(there)
    gone = threading.Event()
    engine = RemoteEngine(here, gone.set)
    server.serve(served.service)
    try:
        yield build(served.service.deployment, folder, engine), server
    finally:
        here.shutdown(socket.SHUT_RDWR)  # as if its process were killed
        assert gone.wait(5)
        server.settle()
        here.close()


def told(reply: Reply) -> tuple[int, bytes, dict[str, str]]:
    body = reply.body if isinstance(reply.body, bytes) else b"".join(reply.body)
    return reply.status, body, reply.headers


@pytest.mark.parametrize(("family", "task", "payloads"), CASES, ids=[case[1] for case in CASES])
def test_every_answer_is_that_of_one_process(
    serve: Serve, tiny: Any, family: str, task: str, payloads: tuple[dict[str, Any], ...]
) -> None:
    folder = tiny(family, task)
    compared(serve(folder, task), folder, payloads)


def test_every_answer_of_slots_is_that_of_one_process(on_slots: tuple[Served, Path]) -> None:
    compared(*on_slots, GENERATING)
    assert on_slots[0].service.task.slots(Limits()) is not None


def compared(served: Served, folder: Path, payloads: tuple[dict[str, Any], ...]) -> None:
    """Compare all answers of a front end with the service's own, and what is counted of them."""
    before = served.service.metadata()["statistics"]["stages"]["parse"]["buckets"][-1][1]
    with front_end(served, folder) as (front, server):
        for payload in payloads:
            raw = json.dumps(payload)
            assert told(front.answer(raw)) == told(served.service.answer(raw)), payload
        server.settle()
        metadata = served.service.metadata()
        assert front.metadata() == metadata
    parsed = metadata["statistics"]["stages"]["parse"]["buckets"][-1][1]
    assert parsed == before + 2 * len(payloads)


@pytest.fixture
def held(on_slots: tuple[Served, Path], monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """The decoder takes no step after a prompt until this is set."""
    decoder, go = on_slots[0].service.loaded.runtime.decoder, threading.Event()
    assert decoder is not None
    step = decoder.step

    def later(slots: Any) -> Any:
        assert go.wait(20)
        return step(slots)

    monkeypatch.setattr(decoder, "step", later)
    return go


STREAM = json.dumps({"inputs": TEXT, "parameters": {"max_new_tokens": 20, "ignore_eos": True}, "stream": True})


def test_a_front_end_that_goes_frees_its_slots_and_no_others(
    on_slots: tuple[Served, Path], held: threading.Event
) -> None:
    served, folder = on_slots
    made = served.service.statistics()["generated_tokens"]
    with front_end(served, folder) as (stays, _):
        kept: Any = stays.answer(STREAM).body
        with front_end(served, folder) as (goes, _):
            dropped: Any = goes.answer(STREAM).body
            until(lambda: served.service.engine.depth() == 2)
        held.set()
        assert b"[DONE]" in b"".join(kept)
        del dropped
    assert served.service.statistics()["generated_tokens"] < made + 40


def test_a_full_queue_is_told_before_a_stream_begins(on_slots: tuple[Served, Path], held: threading.Event) -> None:
    served, folder = on_slots
    with front_end(served, folder) as (front, _):
        replies = [front.answer(STREAM) for _ in range(16)]
        statuses = [reply.status for reply in replies]
        assert statuses[:8] == [200] * 8 and statuses[-1] == 429
        bodies: list[Any] = [reply.body for reply in replies if reply.status == 200]
        for body in bodies:
            body.close()
        held.set()


def test_a_message_that_cannot_be_read_loses_no_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever changes adapters waits for such a call, and would for ever."""
    monkeypatch.setattr(engine_server.threading, "Thread", lambda **told: Mock())
    server, called = EngineServer(State), threading.Event()
    ours, theirs = socket.socketpair()
    with ours, theirs, server._woken, server._wakes, server._selector:
        server._add(ours)
        monkeypatch.setattr(server, "_read", Mock(side_effect=[ValueError("none of ours"), []]))
        theirs.sendall(b"nonsense")
        server._soon(called.set)
        with pytest.raises(ValueError, match="none of ours"):
            server._round()
        server._round()
        assert called.is_set()
