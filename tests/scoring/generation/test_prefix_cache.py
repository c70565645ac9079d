"""What slots hold is used again: prompts that begin alike are computed once, and rows that lost their slot go on."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

import mii_azure
from local_runner.errors import RunnerFailed
from local_runner.host.callers import told_apart
from scoring.config import Limits
from scoring.decoder.block_pool import BlockPool
from scoring.decoder.decoder import Decoder
from scoring.decoder.prefix_cache import PrefixCache, common_prefix
from scoring.engine.row import Row
from scoring.generation.scheduler import Scheduler
from tests.conftest import Tiny
from tests.scenarios.fuzz.apps import serving
from tests.scoring.conftest import Served
from tests.scoring.generating import continuation, plain

TASK = "text-generation"
LONG = "Once upon a time there was a king who wanted to know everything about stars."
SAMPLED = {"do_sample": True, "temperature": 1.4, "top_k": 30, "repetition_penalty": 1.2}


@pytest.fixture(params=["gpt2", "bloom", "llama"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(autouse=True)
def telling(monkeypatch: pytest.MonkeyPatch) -> None:
    """The operator wants callers told how much was held."""
    monkeypatch.setenv("MII_AZURE_TELL_CACHED_TOKENS", "1")


def slotted(tiny: Tiny, family: str = "gpt2", slots: int = 4, **limits: Any) -> Served:
    folder = tiny(family, TASK)
    served = Served(folder, TASK, Limits(**limits))
    loaded = served.service.loaded
    loaded.runtime.decoder = Decoder(loaded.model, slots, loaded.context_length)
    return served


@pytest.fixture
def gpt2(tiny: Tiny) -> Iterator[Served]:
    served = slotted(tiny)
    yield served
    assert served.service.drain(20)


class Prefilled:
    """How many tokens of prompts were computed."""

    def __init__(self, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tokens = 0
        decoder = served.service.loaded.runtime.decoder
        prefill = decoder.prefill_many

        def spy(parts: Any) -> Any:
            self.tokens += sum(len(ids) for _, ids in parts)
            return prefill(parts)

        monkeypatch.setattr(decoder, "prefill_many", spy)

    def take(self) -> int:
        tokens, self.tokens = self.tokens, 0
        return tokens


def cut(text: str, served: Served, tokens: int) -> str:
    """The beginning of a text that has so many tokens, or a few less."""
    return next(text[:end] for end in range(len(text), 0, -1) if length(served, text[:end]) <= tokens)


def length(served: Served, text: str) -> int:
    return len(served.service.loaded.tokenizer(text)["input_ids"])


def told(served: Served, text: Any, **parameters: Any) -> tuple[list[str], int]:
    """The texts of a request, and how many tokens it says were held already."""
    body = {"inputs": text, "parameters": {"return_full_text": False, **parameters}, "options": {"usage": True}}
    status, reply = served(body)
    assert status == 200, reply
    answers = reply["answer"] if isinstance(text, list) else [reply["answer"]]
    return [entry["generated_text"] for answer in answers for entry in answer], reply["usage"]["cached_tokens"]


def test_a_conversation_that_goes_on_computes_what_is_new(
    tiny: Tiny, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, served = tiny(family, TASK), slotted(tiny, family)
    prefilled = Prefilled(served, monkeypatch)
    assert told(served, LONG, max_new_tokens=8, min_new_tokens=8)[1] == 0
    assert prefilled.take() == length(served, LONG)
    for more in (" And then", " he slept. But"):
        texts, cached = told(served, LONG + more, max_new_tokens=8)
        assert texts == [continuation(folder, TASK, LONG + more, max_new_tokens=8)[0]]
        assert cached >= length(served, LONG) - 2
        assert prefilled.take() == length(served, LONG + more) - cached
    texts, cached = told(served, LONG, max_new_tokens=8)
    assert (texts, cached) == (continuation(folder, TASK, LONG, max_new_tokens=8), length(served, LONG) - 1)
    assert prefilled.take() == 1
    assert told(served, "The", max_new_tokens=3)[1] == 0
    assert served.service.statistics()["cached_tokens"] > 3 * (length(served, LONG) - 2)
    assert served.service.drain(20)


def test_other_users_prompts_stay_until_their_slot_is_needed(gpt2: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    prefilled = Prefilled(gpt2, monkeypatch)
    prompts = [f"{number} {LONG}" for number in range(5)]
    for prompt in prompts[:4]:
        told(gpt2, prompt, max_new_tokens=2)
    prefilled.take()
    told(gpt2, prompts[0] + " And", max_new_tokens=2)
    assert prefilled.take() < 8
    assert told(gpt2, prompts[4], max_new_tokens=2)[1] == 0  # takes the slot that was left the longest ago
    prefilled.take()
    assert told(gpt2, prompts[0], max_new_tokens=2)[1] == length(gpt2, prompts[0]) - 1
    assert told(gpt2, prompts[1], max_new_tokens=2)[1] == 0


def test_rows_that_begin_alike_compute_the_beginning_once(
    tiny: Tiny, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, served = tiny(family, TASK), slotted(tiny, family)
    prefilled = Prefilled(served, monkeypatch)
    prompts = [LONG + tail for tail in (" The end", " A fox", " He", " 12")]
    texts, cached = told(served, prompts, max_new_tokens=6)
    assert texts == [continuation(folder, TASK, prompt, max_new_tokens=6)[0] for prompt in prompts]
    whole = sum(length(served, prompt) for prompt in prompts)
    assert cached >= 3 * (length(served, LONG) - 2)
    assert prefilled.take() == whole - cached
    seeds = [served.ok(LONG, **SAMPLED, seed=5 + n, max_new_tokens=6)[0] for n in range(4)]
    prefilled.take()
    many = served.ok(LONG + "!", **SAMPLED, seed=5, max_new_tokens=6, num_return_sequences=4)
    assert prefilled.take() <= 2 + 4
    alone = [served.ok(LONG + "!", **SAMPLED, seed=5 + n, max_new_tokens=6)[0] for n in range(4)]
    assert many == alone
    assert alone != seeds
    assert served.service.drain(20)


def test_what_is_kept_is_bounded_by_the_capacity(tiny: Tiny) -> None:
    served = slotted(tiny, max_batch_tokens=120)
    slots: Any = served.service.task.slots(served.service.deployment.limits)
    pool = slots.decoder.tables.pool
    for number in range(6):
        told(served, f"{number} {LONG}", max_new_tokens=4)
        assert pool.used == 0
        assert 0 < pool.idle <= 2  # blocks of 64 tokens
    assert sorted(slots._free_slots) == list(range(4))
    assert served.service.drain(20)


def test_a_decoder_that_another_has_used_holds_what_it_says(gpt2: Served) -> None:
    first, _ = told(gpt2, LONG, max_new_tokens=4)
    gpt2.service.task.forward([encoded(gpt2, LONG[::-1], max_new_tokens=4)[0] for _ in range(4)])  # on the same slots
    assert told(gpt2, LONG, max_new_tokens=4) == (first, 0)
    assert told(gpt2, LONG[::-1], max_new_tokens=4)[1] == length(gpt2, LONG[::-1]) - 1


def encoded(served: Served, text: str, **parameters: Any) -> list[Row]:
    task = served.service.task
    return task.encode(text, task.schema.parse_parameters(parameters), 0)


@pytest.mark.parametrize("late", [False, True])
def test_rows_that_gave_up_their_slot_lose_no_token(tiny: Tiny, family: str, late: bool) -> None:
    folder, served = tiny(family, TASK), slotted(tiny, family)
    task: Any = served.service.task
    decoder = served.service.loaded.runtime.decoder
    kinds: list[dict[str, Any]] = [{}, {**SAMPLED, "seed": 3}, {"min_new_tokens": 22}, {**SAMPLED, "seed": 4}]
    asked = [{"max_new_tokens": 24, "min_new_tokens": 20, "return_details": True, **kind} for kind in kinds]
    texts = [cut(f"{number} {LONG} {LONG}", served, 50) for number in (5, 6, 7)] + ["12"]
    wanted = [task.forward(encoded(served, text, **how))[0][0] for text, how in zip(texts, asked, strict=True)]
    before = served.service.statistics()["preemptions"]
    waiting = [encoded(served, text, **how)[0] for text, how in zip(texts, asked, strict=True)]
    slots = Scheduler(task, decoder, capacity=len(waiting) * 64)  # a block each, and two need another
    slots._late = late  # as on a GPU, where a step is enqueued before the last one's tokens are read
    outputs: dict[int, Any] = {}
    most, added = 0, 0
    while added < len(waiting) or slots.active:
        while added < len(waiting) and slots.fits(waiting[added]):
            slots.add(waiting[added], partial(outputs.__setitem__, added))
            added += 1
        slots.step()
        assert decoder.tables.pool.used <= len(waiting)
        most = max(most, decoder.tables.pool.used)
    assert served.service.statistics()["preemptions"] > before
    assert most == len(waiting)
    for number, tokens in enumerate(wanted):
        assert outputs[number][0] == tokens, asked[number]
        found = [chance.logprob for chance in outputs[number][0].logprobs]
        assert found == pytest.approx([chance.logprob for chance in tokens.logprobs], abs=1e-3)
    _, tokenizer = plain(folder, TASK)
    assert (
        tokenizer.decode(outputs[0][0], skip_special_tokens=True)
        == (continuation(folder, TASK, texts[0], max_new_tokens=24, min_new_tokens=20)[0])
    )
    assert served.service.drain(20)


def test_a_row_that_waits_for_its_slot_can_be_cancelled(gpt2: Served) -> None:
    task: Any = gpt2.service.task
    slots = Scheduler(task, gpt2.service.loaded.runtime.decoder, capacity=2 * 64)
    rows = [encoded(gpt2, text, max_new_tokens=50, ignore_eos=True)[0] for text in (LONG[:40], LONG[40:])]
    assert all(row.tokens + 25 < 64 < row.tokens + 50 for row in rows)
    done: list[Any] = []
    for row in rows:
        assert slots.fits(row)
        slots.add(row, done.append)
    while not slots._preempted:
        slots.step()
    assert slots.active == 2
    assert not slots.fits(rows[0])
    rows[1].cancelled.set()
    slots.step()
    assert (slots.active, len(done)) == (1, 1)
    while slots.active:
        slots.step()
    assert len(done[1][0]) == 50
    assert slots.fits(rows[0])


def test_common_counts_leading_tokens() -> None:
    rng = random.Random(0)
    for _ in range(300):
        a, b = ([rng.randrange(2) for _ in range(rng.randrange(9))] for _ in range(2))
        assert common_prefix(a, b) == next(
            (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
        )


def test_blocks_are_found_by_their_tokens_and_forgotten_with_their_ancestors() -> None:
    pool = BlockPool(8)
    prefixes = PrefixCache(pool)
    ids = list(range(200))
    assert prefixes.insert(None, "a", ids[:15], [pool.take()]) is None
    first = prefixes.insert(None, "a", ids[:64], [pool.take()])
    second = prefixes.insert(first, "a", ids[64:128], [pool.take()])
    prefixes.insert(second, "a", [*ids[128:140], 0, 0], [pool.take()])
    prefixes.insert(None, "a", [*ids[:40], 0], [pool.take()])
    for count, whole, most in (
        (200, 2, 12),
        (129, 2, 0),
        (128, 1, 63),
        (66, 1, 1),
        (65, 1, 0),
        (64, 0, 63),
        (17, 0, 16),
    ):
        found = prefixes.match(ids[:count], "a")
        assert (len(found.whole), found.rest, found.tokens) == (whole, most, min(count - 1, 140)), count
    assert prefixes.match(ids[:16], "a").tokens == 0
    assert prefixes.match(ids, "b").tokens == 0
    twin = pool.take()
    assert prefixes.insert(first, "a", ids[64:128], [twin]) is second
    prefixes.remove(2)
    assert prefixes.match(ids, "a").tokens == 140  # another block holds the same
    prefixes.remove(twin)
    assert prefixes.match(ids, "a").tokens == 64
    assert 3 not in prefixes
    assert second is not None
    assert prefixes.insert(second, "a", ids[128:192], [5]) is None  # nothing leads to it any more
    prefixes.remove(1)
    assert prefixes.match(ids, "a").tokens == 40


def test_it_can_be_switched_off(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    served = slotted(tiny, prefix_reuse=False)
    prefilled = Prefilled(served, monkeypatch)
    wanted = served.ok(LONG, max_new_tokens=3)
    assert served.ok([LONG, LONG], max_new_tokens=3) == [wanted, wanted]
    assert prefilled.take() == 3 * length(served, LONG)
    assert served.service.statistics()["cached_tokens"] == 0
    assert served.service.drain(20)


def test_callers_are_not_told_what_was_held_unless_the_operator_wants_it(
    gpt2: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    told(gpt2, LONG, max_new_tokens=2)
    metadata = '{"mii_azure": "metadata"}'
    assert "cached_tokens" in gpt2(metadata)[1]["statistics"]
    monkeypatch.delenv("MII_AZURE_TELL_CACHED_TOKENS")
    body = {"inputs": LONG, "parameters": {"max_new_tokens": 2}, "options": {"usage": True}}
    assert sorted(gpt2(body)[1]["usage"]) == ["completion_tokens", "finish_reasons", "prompt_tokens"]
    assert "cached_tokens" not in json.dumps(gpt2({**body, "stream": True})[1])
    assert "cached_tokens" not in gpt2(metadata)[1]["statistics"]


def test_only_prompts_of_one_salt_share_their_beginning(gpt2: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    prefilled = Prefilled(gpt2, monkeypatch)
    whole = length(gpt2, LONG)
    texts = [told(gpt2, LONG, max_new_tokens=4, **salt) for salt in ({}, {"cache_salt": "a"}, {"cache_salt": "b"})]
    assert {tuple(text) for text, _ in texts} == {tuple(texts[0][0])}
    assert [cached for _, cached in texts] == [0, 0, 0]
    assert prefilled.take() == 3 * whole
    for salt in ({}, {"cache_salt": "a"}, {"cache_salt": "b"}):
        assert told(gpt2, LONG, max_new_tokens=4, **salt)[1] == whole - 1
    assert told(gpt2, LONG, max_new_tokens=4, cache_salt="c")[1] == 0


def test_rows_of_other_salts_do_not_wait_for_each_other(gpt2: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts that came together: whoever waited for a leader would tell by it that there is one."""
    task = gpt2.service.task
    slots = task.slots(Limits())
    done: list[Any] = []
    for salt in ("a", "b"):
        parameters = task.schema.parse_parameters({"max_new_tokens": 2, "cache_salt": salt})
        (row,) = task.encode(LONG, parameters, 0)
        slots.add(row, done.append)
    slots.budget = 8
    prefilled = Prefilled(gpt2, monkeypatch)
    while slots.active:
        slots.step()
    assert prefilled.take() == 2 * length(gpt2, LONG)
    assert len(done) == 2


@pytest.mark.parametrize("kept_apart", [True, False])
def test_callers_of_other_keys_share_nothing_where_the_operator_wants_it(
    kept_apart: bool, gpt2: Served, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kept_apart:
        monkeypatch.setenv("MII_AZURE_PREFIX_SALT", "api-key")
    bundle = mii_azure.generate(
        task=TASK, model=str(tiny("gpt2", TASK)), deployment_name="salted", output=tmp_path / "bundle"
    )
    body = {"inputs": LONG, "parameters": {"max_new_tokens": 2}, "options": {"usage": True}}
    completion = {"prompt": LONG, "max_tokens": 2}
    with serving(bundle, gpt2.service) as base, httpx.Client(base_url=base, trust_env=False, timeout=60) as http:

        def held(**headers: str) -> int:
            return int(http.post("/score", json=body, headers=headers).json()["usage"]["cached_tokens"])

        assert held(**{"x-api-key": "one"}) == 0
        whole = held(authorization="Bearer one")
        assert whole > 0
        assert held(**{"x-api-key": "two"}) == (0 if kept_apart else whole)
        assert held() == (0 if kept_apart else whole)
        told = http.post("/v1/completions", json={**completion, "cache_salt": "mine"}).json()["usage"]
        assert told["prompt_tokens_details"]["cached_tokens"] == 0


def test_a_word_that_no_salt_goes_by_ends_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MII_AZURE_PREFIX_SALT", "apikey")
    with pytest.raises(RunnerFailed, match="MII_AZURE_PREFIX_SALT is 'apikey'"):
        told_apart()
