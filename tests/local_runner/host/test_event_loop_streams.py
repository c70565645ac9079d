"""Streams read on an event loop: the same bytes as by a thread, told once a step, and no thread that waits."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from local_runner.host.event_loop_streams import EventLoopStreams
from local_runner.host.thread_pool import ThreadPool
from scoring import entry
from scoring.config import Limits
from scoring.decoder.decoder import Decoder
from scoring.errors import LoadError
from scoring.host_api import EventStream, encode
from tests.conftest import Tiny
from tests.scoring.conftest import Served
from tests.waiting import until_async

TASK = "text-generation"
SLOTS = 8


@pytest.fixture(scope="module")
def slotted(tiny: Tiny) -> Iterator[Served]:
    """A model with slots, on which rows of different requests advance together."""
    served = Served(tiny("gpt2", TASK), TASK)
    loaded = served.service.loaded
    loaded.runtime.decoder = Decoder(loaded.model, SLOTS, loaded.context_length)
    yield served
    assert served.service.drain(20)


class Reader(EventLoopStreams):
    """Reads streams, and notes when it was told of which."""

    def __init__(self) -> None:
        super().__init__(ThreadPool(4, "end").submit)
        self.told: list[int] = []

    def _post(self, waiters: list[Any]) -> None:
        self.told.append(len(waiters))
        super()._post(waiters)


def ask(served: Served, **parameters: Any) -> Any:
    asked = {"inputs": "The house", "parameters": parameters, "stream": True, "options": {"usage": True}}
    body = served.service.answer(json.dumps(asked)).body
    assert isinstance(body, EventStream)
    return body


async def read(reader: EventLoopStreams, stream: Any) -> bytes:
    async with aclosing(reader.read(stream)) as lists:
        return b"".join([encode(event) async for events in lists for event in events])


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"stop": ["e"]},
        {"num_beams": 2},
        {"return_details": True, "top_n_tokens": 2},
        {"do_sample": True, "seed": 3, "num_return_sequences": 2},
        {"num_beams": 2, "num_return_sequences": 2, "return_details": True},
    ],
)
async def test_an_event_loop_reads_the_bytes_that_a_thread_reads(slotted: Served, parameters: dict[str, Any]) -> None:
    parameters = {"max_new_tokens": 12, **parameters}
    got = await read(Reader(), ask(slotted, **parameters))
    events = [event for event in got.split(b"\n\n") if event]
    again = [event for event in b"".join(ask(slotted, **parameters)).split(b"\n\n") if event]
    assert events[-1] == again[-1] == b"data: [DONE]"
    # Rows of one request advance together, but two whose texts come in one step may come in either order.
    assert sorted(events) == sorted(again)
    assert len(events) >= 3


async def test_streams_that_advance_together_are_told_together(slotted: Served) -> None:
    reader = Reader()
    threads = threading.active_count()
    most = 0

    async def one() -> bytes:
        nonlocal most
        read_one = await read(reader, ask(slotted, max_new_tokens=60, ignore_eos=True))
        most = max(most, threading.active_count())
        return read_one

    answers = await asyncio.gather(*(one() for _ in range(SLOTS)))
    assert len(set(answers)) == 1
    events = sum(answer.count(b'"token"') for answer in answers)
    assert events > 4 * SLOTS
    assert most <= threads + 4  # those that make the last events
    # Every step tells of all streams at once; beside that each end is told by itself.
    assert len(reader.told) <= events / 2 + SLOTS
    assert max(reader.told) > SLOTS / 2


async def test_a_stream_that_is_left_frees_its_slot(slotted: Served) -> None:
    stream = ask(slotted, max_new_tokens=100, ignore_eos=True)
    async with aclosing(Reader().read(stream)) as lists:
        assert "token" in (await anext(lists))[0]
    stream.close()
    assert await until_async(lambda: slotted.service.engine.depth() == 0)


async def test_a_stream_that_nobody_reads_on_holds_nothing_up(slotted: Served) -> None:
    reader = Reader()
    left = ask(slotted, max_new_tokens=100, ignore_eos=True)
    async with aclosing(reader.read(left)) as lists:
        first = await anext(lists)
        assert b"[DONE]" in await read(reader, ask(slotted, max_new_tokens=100, ignore_eos=True))
        rest = [event async for events in lists for event in events]
    assert "answer" in rest[-1]
    text = "".join(event["token"]["text"] for event in [*first, *rest[:-1]])
    assert rest[-1]["answer"][0]["generated_text"].endswith(text)


async def test_past_the_timeout_the_stream_ends_with_an_error(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    served = Served(tiny("gpt2", TASK), TASK, Limits(request_timeout_s=0.2))
    go, forward = threading.Event(), served.service.loaded.model.forward

    def held(*args: Any, **kwargs: Any) -> Any:
        assert go.wait(30)
        return forward(*args, **kwargs)

    monkeypatch.setattr(served.service.loaded.model, "forward", held)
    got = await read(Reader(), ask(served, max_new_tokens=100))
    go.set()
    assert json.loads(got.removeprefix(b"data: "))["error"]["code"] == "request_timeout"
    assert served.service.drain(20)


async def test_a_reader_that_fails_harms_no_other(slotted: Served) -> None:
    def fail(marks: list[Any]) -> None:
        raise ValueError("a host's own fault")

    stream = ask(slotted, max_new_tokens=20)
    stream.listen(fail, None)
    assert b"[DONE]" in await read(Reader(), ask(slotted, max_new_tokens=20))
    assert b"[DONE]" in b"".join(stream)


def test_the_inference_thread_gets_the_interpreter_within_a_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_HUB_OFFLINE", "TOKENIZERS_PARALLELISM"):
        monkeypatch.setenv(name, os.environ.get(name, "1"))
    monkeypatch.setattr(entry, "CODE_DIR", tmp_path)
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.005)
    try:
        with pytest.raises(LoadError):
            entry.init()
        assert sys.getswitchinterval() <= 0.001
    finally:
        sys.setswitchinterval(before)


def test_the_garbage_collector_leaves_a_loaded_model_alone() -> None:
    before, frozen = gc.get_threshold(), gc.get_freeze_count()
    try:
        entry._settle()
        assert gc.get_freeze_count() > frozen
        assert gc.get_threshold()[0] > 10_000
        assert gc.isenabled()
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)


@pytest.mark.parametrize("enabled", [True, False])
def test_the_garbage_collector_leaves_what_a_start_imports_alone(enabled: bool) -> None:
    before = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        with pytest.raises(ImportError), entry._importing():
            assert not gc.isenabled()
            kept = [object]
            raise ImportError
        assert gc.isenabled() is enabled
        assert not any(kept is each for each in gc.get_objects(generation=0))
    finally:
        gc.unfreeze()
        (gc.enable if before else gc.disable)()
