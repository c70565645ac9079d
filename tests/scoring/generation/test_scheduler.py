"""Rows join and leave the slots between steps, and each is answered as if it were alone."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from scoring.config import Limits
from scoring.decoder.chunk_size import CHUNKS
from scoring.decoder.decoder import Decoder
from scoring.decoder.prompt_cost import PromptCost
from scoring.generation.scheduler import Scheduler
from tests.conftest import Tiny
from tests.scoring.conftest import Served
from tests.scoring.generating import PROMPTS, continuation
from tests.scoring.generation.slots import LONG, SLOTS, TASK, Ask, Steps, forever, rows, slotted
from tests.waiting import until

# -- answers -------------------------------------------------------------------------------------------------------


def asks(rng: random.Random) -> list[Ask]:
    """64 requests of every kind: on slots and not, sampled, stopped, streamed, cancelled."""
    kinds: list[Callable[[], Ask]] = [
        dict,
        lambda: {"repetition_penalty": 1.4},
        lambda: {"min_new_tokens": 6},
        lambda: {"ignore_eos": True},
        lambda: {"do_sample": True, "seed": rng.randrange(1000), "temperature": 1.2, "top_k": 20},
        lambda: {"do_sample": True, "seed": rng.randrange(1000), "top_p": 0.8},
        lambda: {"num_beams": 2},
        lambda: {"no_repeat_ngram_size": 2},
    ]
    found = []
    for number in range(64):
        parameters = kinds[number % len(kinds)]() | {"max_new_tokens": rng.randint(6, 24), "return_full_text": False}
        text = rng.choice((*PROMPTS, LONG, LONG[:105]))  # of which one passes a block's end as it is answered
        how = ("plain", "plain", "stream", "stop", "cancel")[number % 5]
        if how == "stop" and "num_beams" in parameters:  # a stop text changes which beams are looked at
            how = "plain"
        found.append({"inputs": text, "parameters": parameters, "how": how})
    rng.shuffle(found)
    return found


def alone(served: Served, ask: Ask) -> str:
    text: str = served.ok(ask["inputs"], **ask["parameters"])[0]["generated_text"]
    return text


def together(served: Served, ask: Ask, stop: str) -> str:
    """Send it in its own way; a stream is checked to add up, a cancelled one answers what it gave until then."""
    parameters = ask["parameters"] | ({"stop": [stop]} if ask["how"] == "stop" and stop else {})
    payload = {"inputs": ask["inputs"], "parameters": parameters}
    if ask["how"] in ("stream", "cancel"):
        body: Any = served.service.answer(json.dumps(payload | {"stream": True})).body
        pieces = []
        for event in body:
            found = json.loads(event.removeprefix(b"data: ")) if b"[DONE]" not in event else {}
            assert "error" not in found, found
            pieces.append(found.get("token", {}).get("text", ""))
            if ask["how"] == "cancel" and len(pieces) == 2:
                body.close()
                break
            if "answer" in found:
                assert "".join(pieces) == found["answer"][0]["generated_text"]
        return "".join(pieces)
    return alone(served, ask | {"parameters": parameters})


@pytest.mark.parametrize(("family", "tokens"), [("gpt2", 0), ("bloom", 0), ("llama", 128)])
def test_64_mixed_requests_are_each_answered_as_alone(family: str, tokens: int, tiny: Tiny) -> None:
    folder = tiny(family, TASK)
    served = slotted(folder, tokens)
    shuffled = asks(random.Random(family))
    wanted = [alone(served, ask) for ask in shuffled]
    stops = [text[2:5] for text in wanted]
    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(lambda pair: together(served, *pair), zip(shuffled, stops, strict=True)))
    for ask, stop, whole, answer in zip(shuffled, stops, wanted, answers, strict=True):
        if ask["how"] == "cancel":
            assert whole.startswith(answer), ask
        elif ask["how"] == "stop" and stop:
            assert answer == whole[: whole.index(stop)], ask
        else:
            assert answer == whole, ask
        plain = dict(ask["parameters"])
        plain.pop("return_full_text")
        if plain.pop("ignore_eos", False):
            plain["min_new_tokens"] = plain["max_new_tokens"]
        if not plain.get("do_sample"):
            assert whole == continuation(folder, TASK, ask["inputs"], **plain)[0], ask
    until(lambda: served.service.engine.depth() == 0)
    assert tokens or served.service.statistics()["preemptions"] == 0
    assert served.service.drain(20)


# -- joining and leaving -------------------------------------------------------------------------------------------


def test_a_row_joins_while_others_run_and_is_answered_before_them(
    gpt2: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = Steps(gpt2, monkeypatch)
    engine = gpt2.service.engine
    steps.go.clear()
    long = engine.submit([forever(gpt2)])
    until(lambda: len(steps.batches) == 1)
    short = engine.submit(rows(gpt2, "Hello", max_new_tokens=3, ignore_eos=True))
    steps.go.set()
    assert len(short.future.result(20)[0][0]) == 3
    assert not long.future.done()
    assert len(long.future.result(20)[0][0]) == 100
    # Its prompt is computed beside the second step, which gives its first token.
    assert [len(batch) for batch in steps.batches[:5]] == [1, 1, 2, 2, 1]


def test_a_cancelled_row_leaves_its_slot_within_one_step(gpt2: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps(gpt2, monkeypatch)
    engine = gpt2.service.engine
    steps.go.clear()
    gone, stays = engine.submit([forever(gpt2)]), engine.submit([forever(gpt2)])
    until(lambda: len(steps.batches) == 1)
    begun = len(steps.batches)
    gone.cancel()
    steps.go.set()
    assert len(stays.future.result(20)[0][0]) == 100
    assert all(len(batch) == 1 for batch in steps.batches[begun + 1 :])


def test_more_rows_than_slots_wait_their_turn(gpt2: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps(gpt2, monkeypatch)
    texts = [f"{number}" for number in range(3 * SLOTS)]
    answers = gpt2.ok(texts, max_new_tokens=5, ignore_eos=True)
    assert len(answers) == len(texts)
    assert max(len(batch) for batch in steps.batches) == SLOTS
    assert len(steps.batches) == 3 * 4  # the first token of each comes from its prompt


def test_a_long_prompt_comes_in_pieces_beside_the_steps_of_others(
    gpt2: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = Steps(gpt2, monkeypatch)
    slots: Any = gpt2.service.task.slots(gpt2.service.deployment.limits)
    monkeypatch.setattr(slots, "budget", 17)
    engine = gpt2.service.engine
    steps.go.clear()
    running = engine.submit([forever(gpt2)])
    until(lambda: len(steps.batches) == 1)
    [row] = rows(gpt2, LONG, max_new_tokens=2)
    assert row.tokens > 32
    late = engine.submit([row])
    steps.go.set()
    assert late.future.result(20)
    running.future.result(20)
    pieces = steps.prompts[1:]
    assert [len(parts) for parts in pieces] == [1] * len(pieces)
    assert [parts[0] for parts in pieces[:-1]] == [16] * (len(pieces) - 1)
    assert sum(parts[0] for parts in pieces) == row.tokens


def test_pieces_are_as_long_as_the_rows_beside_them_can_wait(gpt2: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device whose prompts take 2 ms a token and 0.04 ms a token and key: 34 ms beside a stream, 300 ms alone."""
    cost = PromptCost(2.0, 0.04)
    wanted = gpt2.ok(LONG, max_new_tokens=2, return_full_text=False)
    monkeypatch.setattr(Decoder, "prompt_cost", cost)
    steps = Steps(gpt2, monkeypatch)
    engine = gpt2.service.engine
    for alone, most in ((True, 300.0), (False, 34.0)):
        steps.prompts.clear()
        if not alone:
            steps.go.clear()
            seen = len(steps.batches)
            running = engine.submit([forever(gpt2)])
            until(lambda seen=seen: len(steps.batches) > seen)
            steps.prompts.clear()
        [row] = rows(gpt2, f"{alone}{LONG}", max_new_tokens=2)
        late = engine.submit([row])
        steps.go.set()
        assert late.future.result(20)
        counts = [count for (count,) in steps.prompts]
        taken = [cost.ms(sum(counts[:number]), count) for number, count in enumerate(counts)]
        assert sum(counts) == row.tokens > 64
        assert len(counts) > 1 and all(
            ms <= most or count <= CHUNKS[0] for ms, count in zip(taken, counts, strict=True)
        )
        assert max(counts) == (64 if alone else 16)
        assert all(count in CHUNKS for count in counts[:-1])
        if not alone:
            running.future.result(20)
    assert gpt2.ok(LONG, max_new_tokens=2, return_full_text=False) == wanted


def test_a_long_prompt_leaves_time_to_short_ones_behind_it(gpt2: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Decoder, "prompt_cost", PromptCost(8.0))
    steps = Steps(gpt2, monkeypatch)
    slots: Any = gpt2.service.task.slots(gpt2.service.deployment.limits)
    done: list[str] = []
    for name, text in (("long", LONG), ("short", "The cat")):
        [row] = rows(gpt2, text, max_new_tokens=1)
        slots.add(row, lambda output, name=name: done.append(name))
    while slots.active:
        slots.step()
    assert done == ["short", "long"]
    assert steps.prompts[0][0] == 32 and 0 < steps.prompts[0][1] < 5  # 296 ms of 300


def test_short_prompts_share_a_forward(gpt2: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps(gpt2, monkeypatch)
    gpt2.ok(["The", "Hello", "12"], max_new_tokens=2)
    assert [len(parts) for parts in steps.prompts] == [3]


def test_capacity_in_tokens_bounds_what_runs_and_none_is_overtaken(gpt2: Served) -> None:
    decoder = gpt2.service.loaded.runtime.decoder
    task: Any = gpt2.service.task
    slots = Scheduler(task, decoder, capacity=4 * 64)
    [small] = rows(gpt2, "The", max_new_tokens=10)
    [large] = rows(gpt2, LONG, max_new_tokens=45, ignore_eos=True)
    assert 64 < large.tokens + 23 <= 128 == large.tokens + 45
    assert slots.fits(large)
    slots.add(small, lambda output: None)
    assert slots.fits(small)
    assert slots.fits(large)
    slots.add(large, lambda output: None)
    assert slots.fits(small)
    assert not slots.fits(large)
    slots.step()
    while slots.active:
        slots.step()
    assert slots.fits(large)


# -- what is told ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parameters", [{}, {"num_beams": 2}, {"no_repeat_ngram_size": 2}])
def test_every_token_is_timed(gpt2: Served, parameters: Ask) -> None:
    before = gpt2.service.statistics()
    gpt2.ok(["The", "Hello"], max_new_tokens=5, min_new_tokens=5, **parameters)
    after = gpt2.service.statistics()

    def grown(name: str) -> int:
        return int(after[name]["buckets"][-1][1] - before[name]["buckets"][-1][1])

    assert (grown("first_token"), grown("next_token")) == (2, 2 * 4)
    assert 0 < after["first_token"]["sum"] < 20
    assert 0 < after["next_token"]["sum"] < 20


def test_tokens_held_on_slots_are_told(gpt2: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps(gpt2, monkeypatch)
    steps.go.clear()
    rows_ = [forever(gpt2), forever(gpt2)]
    job = gpt2.service.engine.submit(rows_)
    until(lambda: len(steps.batches) == 1)
    gone = gpt2.service.engine.submit([forever(gpt2)])
    gone.cancel()
    steps.go.set()
    job.future.result(20)
    until(lambda: gpt2.service.engine.depth() == 0)
    told = gpt2.service.statistics()
    decoder = gpt2.service.loaded.runtime.decoder
    assert told["kv_tokens"] == 0
    assert told["kv_capacity"] == min(Limits().max_batch_tokens, decoder.slots * decoder.max_length)
    slots: Any = gpt2.service.task.slots(gpt2.service.deployment.limits)
    slots.add(rows_[0], lambda output: None)
    slots.step()
    assert slots.cache["kv_tokens"] == rows_[0].tokens
    slots.step()
    assert slots.cache["kv_tokens"] == rows_[0].tokens + 1
    rows_[0].cancelled.set()
    slots.step()
    assert slots.cache["kv_tokens"] == 0
