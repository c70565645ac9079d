"""Rows on slots beside batches, steps that fail, bounds of memory and time."""

from __future__ import annotations

import json
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

import pytest
import torch

from scoring.errors import NotReady
from scoring.limits.departure import Departure, departure
from tests.conftest import Tiny
from tests.scoring.conftest import Served
from tests.scoring.generation.slots import LONG, SLOTS, TASK, Ask, Steps, forever, rows, slotted
from tests.waiting import until


def test_beams_and_slots_take_turns(gpt2: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[str] = []
    model, decoder = gpt2.service.loaded.model, gpt2.service.loaded.runtime.decoder
    forward, step = model.forward, decoder.step

    def spy(*args: Any, **kwargs: Any) -> Any:
        turns.append("generate")
        return forward(*args, **kwargs)

    def spy_step(slots: Any) -> Any:
        turns.append("slots")
        return step(slots)

    monkeypatch.setattr(model, "forward", spy)
    monkeypatch.setattr(decoder, "step", spy_step)
    engine = gpt2.service.engine
    running = engine.submit([forever(gpt2)])
    beams = engine.submit(rows(gpt2, "Hello", num_beams=2, max_new_tokens=20, min_new_tokens=20))
    assert beams.future.result(20)
    assert not running.future.done()
    running.future.result(20)
    first, last = turns.index("generate"), len(turns) - turns[::-1].index("generate")
    during = turns[first:last]
    assert "".join(turn[0] for turn in during).count("gg") <= 1
    assert "".join(turn[0] for turn in during).count("ss") == 0


def useless(**_: Any) -> Any:
    """Make a row fail without slots too, which shows that the row is to blame."""
    raise RuntimeError("no answer")


def test_a_row_whose_step_fails_fails_alone(
    gpt2: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    steps = Steps(gpt2, monkeypatch)
    wanted = gpt2.ok("Hello", max_new_tokens=12)
    monkeypatch.setattr(gpt2.service.loaded.model, "generate", useless)
    steps.poison = 1
    steps.go.clear()
    seen = len(steps.batches)
    with ThreadPoolExecutor(3) as pool:
        first: Future[Any] = pool.submit(gpt2, {"inputs": "Hello", "parameters": {"max_new_tokens": 12}})
        until(lambda: len(steps.batches) > seen)
        second = pool.submit(gpt2, {"inputs": "The", "parameters": {"max_new_tokens": 12}})
        until(lambda: len(gpt2.service.engine._waiting) == 1)
        steps.go.set()
        assert first.result(20) == (200, wanted)
        status, answer = second.result(20)
    assert (status, answer["error"]["code"]) == (500, "internal")
    assert "secret" not in json.dumps(answer)
    assert "secret of the house" in caplog.text
    steps.poison = -1
    assert gpt2.ok(["Hello"] * SLOTS, max_new_tokens=12) == [wanted] * SLOTS


def test_a_prompt_that_fails_fails_alone(gpt2: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [gpt2.ok(text, max_new_tokens=5) for text in ("Hello", "12")]
    decoder = gpt2.service.loaded.runtime.decoder
    poison = rows(gpt2, "The", max_new_tokens=5)[0].features["input_ids"]
    prefill = decoder.prefill_many

    def failing(parts: Any) -> Any:
        if any(list(ids) == poison for _, ids in parts):
            raise ValueError("no number")
        return prefill(parts)

    monkeypatch.setattr(decoder, "prefill_many", failing)
    monkeypatch.setattr(gpt2.service.loaded.model, "generate", useless)
    with ThreadPoolExecutor(3) as pool:
        ask: list[Ask] = [{"inputs": text, "parameters": {"max_new_tokens": 5}} for text in ("Hello", "The", "12")]
        statuses = list(pool.map(gpt2, ask))
    assert [status for status, _ in statuses] == [200, 500, 200]
    assert [statuses[0][1], statuses[2][1]] == wanted


def test_a_step_that_runs_out_of_memory_is_halved(gpt2: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [gpt2.ok(text, max_new_tokens=6) for text in ("Hello", "12", "The", "a")]
    steps = Steps(gpt2, monkeypatch)
    decoder = gpt2.service.loaded.runtime.decoder
    step, prefill = decoder.step, decoder.prefill_many

    def full(slots: Any) -> Any:
        if len(slots) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return step(slots)

    def full_prefill(parts: Any) -> Any:
        if len(parts) > 3:
            raise MemoryError
        return prefill(parts)

    monkeypatch.setattr(decoder, "step", full)
    monkeypatch.setattr(decoder, "prefill_many", full_prefill)
    assert gpt2.ok(["Hello", "12", "The", "a"], max_new_tokens=6) == wanted
    assert {len(batch) for batch in steps.batches} == {2}
    assert [len(parts) for parts in steps.prompts] == [2, 2]


def test_a_prompt_too_large_for_the_memory_comes_in_smaller_pieces(
    gpt2: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = gpt2.ok(LONG, max_new_tokens=6)
    decoder = gpt2.service.loaded.runtime.decoder
    decoder.evict(0)  # what it holds is not used again
    prefill = decoder.prefill_many
    taken: list[int] = []

    def full(parts: Any) -> Any:
        if (tokens := sum(len(ids) for _, ids in parts)) > 20:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        taken.append(tokens)
        return prefill(parts)

    monkeypatch.setattr(decoder, "prefill_many", full)
    [row] = rows(gpt2, LONG, max_new_tokens=6)
    assert gpt2.ok(LONG, max_new_tokens=6) == wanted
    assert sum(taken) == row.tokens
    assert len(taken) > 1


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_a_row_on_slots_that_does_not_fit_the_memory_fails_alone(
    gpt2: Served, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    wanted = gpt2.ok("Hello", max_new_tokens=12)
    [hello] = rows(gpt2, "Hello", max_new_tokens=12)
    decoder = gpt2.service.loaded.runtime.decoder
    prefill = decoder.prefill_many
    limit = hello.tokens

    def full(parts: Any) -> Any:
        if any(len(ids) > limit for _, ids in parts):
            raise error
        return prefill(parts)

    monkeypatch.setattr(decoder, "prefill_many", full)
    monkeypatch.setattr("scoring.generation.scheduler._LEAST_PROMPT", 10**6)
    [large] = rows(gpt2, LONG, max_new_tokens=12)
    with ThreadPoolExecutor(2) as pool:
        ask: list[Ask] = [{"inputs": text, "parameters": {"max_new_tokens": 12}} for text in ("Hello", LONG)]
        fits, refused = pool.map(gpt2, ask)
    assert fits == (200, wanted)
    status, answer = refused
    assert (status, answer["error"]["code"]) == (413, "payload_too_large")
    assert f"{large.footprint} tokens do not fit" in answer["error"]["message"]
    assert f"up to {hello.footprint} tokens have been served" in answer["error"]["message"]
    limit = 0
    reply = gpt2.service.answer(json.dumps({"inputs": "Hello", "parameters": {"max_new_tokens": 12}}))
    assert (reply.status, reply.headers) == (503, {"Retry-After": "1"})
    assert b"device_full" in reply.body  # type: ignore[operator]
    limit = hello.tokens
    assert gpt2.ok("Hello", max_new_tokens=12) == wanted


def test_a_full_queue_is_429_while_the_slots_run(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    served = slotted(tiny("gpt2", TASK), queue_size=3)
    steps = Steps(served, monkeypatch)
    steps.go.clear()
    running = served.service.engine.submit([forever(served) for _ in range(SLOTS)])
    until(lambda: len(steps.batches) == 1)
    waiting = served.service.engine.submit([forever(served) for _ in range(3)])
    status, answer = served({"inputs": "a"})
    assert (status, answer["error"]["code"]) == (429, "overloaded")
    assert served.service.engine.depth() == SLOTS + 3
    steps.go.set()
    assert [len(job.future.result(30)) for job in (running, waiting)] == [SLOTS, 3]
    assert served.service.drain(20)


def test_a_timeout_frees_the_slot(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    served = slotted(tiny("gpt2", TASK), request_timeout_s=0.2)
    steps = Steps(served, monkeypatch)
    steps.go.clear()
    status, answer = served({"inputs": "The", "parameters": {"max_new_tokens": 100, "ignore_eos": True}})
    assert (status, answer["error"]["code"]) == (504, "request_timeout")
    steps.go.set()
    until(lambda: served.service.engine.depth() == 0)
    assert len(steps.batches) <= 2


def test_draining_finishes_what_is_on_slots(gpt2: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps(gpt2, monkeypatch)
    engine = gpt2.service.engine
    steps.go.clear()
    job = engine.submit([forever(gpt2) for _ in range(SLOTS + 1)])
    until(lambda: len(steps.batches) == 1)
    assert not engine.drain(0.05)
    with pytest.raises(NotReady):
        engine.submit([forever(gpt2)])
    steps.go.set()
    assert engine.drain(20)
    assert [len(output[0]) for output in job.future.result(0)] == [100] * (SLOTS + 1)


def test_rows_whose_caller_has_gone_leave_the_decoder_and_the_queue(
    gpt2: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of twelve rows four are on slots and eight wait; each had its hundred tokens to the last."""
    steps, notice = Steps(gpt2, monkeypatch), Departure()
    before = dict(gpt2.service.statistics())["generated_tokens"]
    context = copy_context()
    context.run(departure.set, notice)
    steps.go.clear()
    with ThreadPoolExecutor(1) as pool:
        asked = {"inputs": ["The"] * 3 * SLOTS, "parameters": {"max_new_tokens": 100, "ignore_eos": True}}
        answer = pool.submit(context.run, gpt2, asked)
        until(lambda: steps.batches)
        notice.leave()
        steps.go.set()
        answer.result(20)
        until(lambda: gpt2.service.engine.depth() == 0)
    assert gpt2.service.statistics()["generated_tokens"] - before < 50
    assert gpt2.ok("Hello", max_new_tokens=2)
