"""Requests of lower priority numbers are taken first, and give way last."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from scoring.decoder.decoder import Decoder
from scoring.engine.row import Row
from scoring.generation.scheduler import Scheduler
from tests.conftest import Tiny
from tests.scoring.conftest import Served
from tests.waiting import until

TASK = "text-generation"


@pytest.fixture(scope="module")
def served(tiny: Tiny) -> Served:
    made = Served(tiny("gpt2", TASK), TASK)
    loaded = made.service.loaded
    loaded.runtime.decoder = Decoder(loaded.model, 1, loaded.context_length)
    return made


def test_the_queue_is_in_the_order_of_priorities(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, go, begun = served.service.loaded.runtime.decoder, threading.Event(), []
    prefill, step = decoder.prefill_many, decoder.step
    monkeypatch.setattr(decoder, "prefill_many", lambda parts: (begun.append(parts[0][1]), prefill(parts))[1])
    monkeypatch.setattr(decoder, "step", lambda slots: (go.wait(30), step(slots))[1])
    asked = [("first", 0), ("second", 0), ("third", 5), ("fourth", -1), ("fifth", 0), ("sixth", 5)]
    with ThreadPoolExecutor(len(asked)) as pool:
        for count, (text, priority) in enumerate(asked):
            pool.submit(served.ok, text, priority=priority, max_new_tokens=3, ignore_eos=True)
            until(lambda count=count: served.service.engine.depth() == count + 1 and bool(begun))  # type: ignore[misc]
        go.set()
    ids = {tuple(served.service.task.call_tokenizer(text)["input_ids"]): text for text, _ in asked}
    assert [ids[tuple(each)] for each in begun] == ["first", "fourth", "second", "fifth", "third", "sixth"]


def test_where_tokens_are_short_the_highest_number_gives_way(tiny: Tiny) -> None:
    made = Served(tiny("gpt2", TASK), TASK)
    task, loaded = made.service.task, made.service.loaded
    slots = Scheduler(task, Decoder(loaded.model, 2, loaded.context_length, tokens=128), 128)

    def row(text: str, priority: int) -> Row:
        parameters = {"max_new_tokens": 100, "ignore_eos": True, "priority": priority}
        [made] = task.encode(text, task.schema.parse_parameters(parameters), 0)
        return made

    outputs: dict[str, Any] = {}
    slots.add(row("The older one waits", 3), partial(outputs.__setitem__, "older"))
    slots.add(row("A younger one", 0), partial(outputs.__setitem__, "younger"))
    while not slots._preempted:
        slots.step()
    assert [each.row.priority for each in slots._preempted] == [3]
    while slots.active:
        slots.step()
    assert list(outputs) == ["younger", "older"]
