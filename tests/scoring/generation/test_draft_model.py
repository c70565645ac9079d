"""A draft model changes how fast tokens come, and nothing about them; where it is seldom right it is left alone."""

from __future__ import annotations

import random
from copy import deepcopy
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from scoring.decoder.block_pool import BLOCK
from scoring.decoder.decoder import Decoder
from scoring.decoder.kv_cache import SamplingParams
from scoring.errors import DeviceFull
from scoring.generation import drafting
from scoring.generation.draft_model import DraftModel
from tests.conftest import Tiny
from tests.scoring.conftest import Served
from tests.scoring.generation.test_speculation import ALWAYS, COPIED, SLOTS, accepted, answers, asks_of, row_of
from tests.scoring.generation.test_speculation import served as served

TASK = "text-generation"


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(drafting.PAYOFFS, "cpu", ALWAYS)


def near(served: Served, noise: float, tier: Any = None, length: int = 128, tokens: int = 0) -> Decoder:
    """Decoder of a model that is the served one but for some noise in its weights."""
    model = deepcopy(served.service.loaded.model)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = noise * parameter.std() if parameter.numel() > 1 else 0.0
            parameter += scale * torch.randn(parameter.shape, generator=generator)
    return Decoder(model, SLOTS, length, tier=tier, tokens=tokens)


@pytest.mark.parametrize(("late", "tokens"), [(False, 0), (True, 0), (True, 7 * BLOCK)])
def test_mixed_rows_are_answered_as_without_drafts(served: Served, late: bool, tokens: int) -> None:
    """Greedy and sampled, with log-probabilities, penalties and grammars, in steps that rows join and leave."""
    asks = asks_of(random.Random(7), 21)
    plain, before = answers(served, asks, speculation=False), accepted(served)
    draft = near(served, 0.02)
    drafted = answers(served, asks, True, late, tokens, draft=draft)
    assert drafted == plain
    for ask, one, other in zip(asks, drafted, plain, strict=True):
        if "return_details" in ask:
            assert [chance.logprob for chance in one.logprobs] == pytest.approx(
                [chance.logprob for chance in other.logprobs], abs=1e-4
            )
    assert accepted(served) > before + 50


@pytest.mark.parametrize("tier", ["generic", "fused"])
def test_sampled_drafts_of_the_same_model_are_all_right(served: Served, tier: Any) -> None:
    """They are drawn with the sequence's settings and random numbers, whichever tier computes them."""
    ask = {"text": "one two three", "do_sample": True, "temperature": 1.2, "seed": 9, "max_new_tokens": 40}
    asks = [ask | {"ignore_eos": True}]
    counted = served.service.statistics()
    drafted = answers(served, asks, True, draft=near(served, 0.0, tier))
    now = served.service.statistics()
    assert drafted == answers(served, asks, speculation=False)
    assert now["drafted_tokens"] - counted["drafted_tokens"] == now["accepted_tokens"] - counted["accepted_tokens"] > 30


def test_a_draft_model_that_is_seldom_right_is_left_alone(
    served: Served, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(drafting.PAYOFFS, "cpu", drafting.Payoff(SLOTS, 32, 0.0, 0.2))
    asks = [{"text": f"{number} of many", "max_new_tokens": 70, "ignore_eos": True} for number in range(4)]
    draft = near(served, 3.0)
    before = served.service.statistics()["drafted_tokens"]
    assert answers(served, asks, True, draft=draft) == answers(served, asks, speculation=False)
    assert 0 < served.service.statistics()["drafted_tokens"] - before < 4 * 40


def test_a_draft_model_that_fails_ends_the_drafts_alone(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    draft, calls = near(served, 0.0), []
    step = draft.step

    def failing(slots: Any) -> Any:
        calls.append(slots)
        if len(calls) > 5:
            raise RuntimeError("an illegal address")
        return step(slots)

    monkeypatch.setattr(draft, "step", failing)
    asks = [{"text": "one two", "max_new_tokens": 60, "ignore_eos": True}] * 3
    assert answers(served, asks, True, draft=draft) == answers(served, asks, speculation=False)
    assert len(calls) == 6


def test_rows_longer_than_the_draft_models_cache_go_on_without_it(served: Served) -> None:
    asks = [{"text": "one two three", "max_new_tokens": 90, "ignore_eos": True}]
    draft = near(served, 0.0, length=BLOCK)
    before = accepted(served)
    assert answers(served, asks, True, draft=draft) == answers(served, asks, speculation=False)
    assert 20 < accepted(served) - before < BLOCK


def test_rows_that_do_not_fit_the_draft_models_cache_together_are_drafted_in_turn(served: Served) -> None:
    """Each takes two blocks, and the cache has three."""
    asks = [{"text": COPIED * 2, "max_new_tokens": 50 + number, "ignore_eos": True} for number in range(3)]
    assert BLOCK < row_of(served, **asks[0]).tokens < 2 * BLOCK - 52
    draft, before = near(served, 0.0, tokens=3 * BLOCK), accepted(served)
    assert answers(served, asks, True, draft=draft) == answers(served, asks, speculation=False)
    assert accepted(served) - before > 60


def test_a_full_cache_ends_no_draft_but_the_steps(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    draft, calls, before = near(served, 0.0), [], accepted(served)
    prefill_many = draft.prefill_many

    def full(parts: Any) -> Any:
        calls.append(parts)
        if len(calls) == 2:
            raise DeviceFull("All blocks are in use.")
        return prefill_many(parts)

    monkeypatch.setattr(draft, "prefill_many", full)
    asks = [{"text": "one two", "max_new_tokens": 60, "ignore_eos": True}]
    assert answers(served, asks, True, draft=draft) == answers(served, asks, speculation=False)
    assert accepted(served) - before > 30
    assert len(calls) > 2


def test_new_sequences_begin_with_what_others_measured(served: Served) -> None:
    """A pair that does not pay costs one new sequence in eight some steps; two wrong tokens end it for that one."""
    vocabulary = served.service.loaded.model.config.vocab_size
    model = DraftModel(near(served, 0.0), 1.6, 0.12, vocabulary)

    def begun(number: int) -> Any:
        own = {"row": Mock(features={"input_ids": [1, 2]}), "tokens": [], "token_ids": [1, 2], "number": number}
        return Mock(sampling=SamplingParams(), **own)

    tried = 0
    for number in range(1, 40):
        running = begun(number)
        steps = 0
        while model.reach(running, 15) and steps < 20:
            last, *draft = model.drafts({running: []}, lambda row, last: 15)[running]
            running.tokens.append((draft[0] + 1) % vocabulary if draft else last)  # never what was foretold
            steps += bool(draft)
        tried += steps > 0
        assert steps <= 4
        model._follow({})
    assert 5 <= tried <= 20
    model._overall = 0.9
    assert model.reach(begun(41), 15) > 3


def test_a_draft_is_as_long_as_pays(served: Served) -> None:
    model = DraftModel(near(served, 0.0), 1.0, 0.05, served.service.loaded.model.config.vocab_size)
    running: Any = Mock(
        sampling=SamplingParams(), row=Mock(features={"input_ids": [1, 2]}), tokens=[], token_ids=[1, 2]
    )
    model.drafts({running: []}, lambda row, last: 0)
    [followed] = model._followed.values()
    found = []
    for followed.rate in (0.01, 0.3, 0.6, 0.9, 1.0):
        found.append(model.reach(running, 15))
    assert found == sorted(found)
    assert (found[0], found[-1]) == (0, 15)
    assert model.reach(running, 2) == 2
    assert model.reach(running, -1) == 0
