"""Sampling without a GPU: against transformers' own logits processors, and against the distribution it promises."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from scoring.decoder.decoder import Decoder
from scoring.decoder.kv_cache import SamplingParams
from scoring.decoder.sampler import adjust, gumbel, philox, restrict
from tests.scoring.decoder.test_adapters import generated, greedy, prompt, tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny("llama", tmp_path_factory.mktemp("llama"))


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "penalty"), [(0.7, 20, 0.9, 1.3), (1.5, 5, 1.0, 1.0), (1.0, 0, 0.4, 0.8)]
)
def test_scores_match_transformers(model: Any, temperature: float, top_k: int, top_p: float, penalty: float) -> None:
    decoder = Decoder(model, slots=1, max_length=64)
    ids = prompt(model, 30)
    decoder.open(0, SamplingParams(temperature, top_k, top_p, penalty))
    logits = decoder.prefill(0, ids)
    processors = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(penalty), TemperatureLogitsWarper(temperature)])
    if top_k:
        processors.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        processors.append(TopPLogitsWarper(top_p))
    expected = processors(torch.tensor([ids]), logits[None].clone())[0]
    actual = restrict(adjust(logits, decoder.state, 0, 30), temperature, top_k, top_p)
    assert torch.equal(actual.isinf(), expected.isinf())
    assert torch.allclose(actual, expected, atol=1e-5)


def test_repetition_penalty_counts_generated_tokens_too(model: Any) -> None:
    ids = prompt(model, 11)
    held = greedy(model)
    decoder = Decoder(model, slots=1, max_length=64)
    decoder.open(0, SamplingParams(repetition_penalty=1.8, forbidden=held.forbidden, forbidden_until=10**6))
    decoder.prefill(0, ids)
    tokens = decoder.sample([0]).tokens()
    for _ in range(19):
        tokens += decoder.step([0]).tokens()
    assert tokens == generated(model, ids, 20, repetition_penalty=1.8)


def test_end_tokens_are_held_back_only_until_the_length_asked_for(model: Any) -> None:
    ids = prompt(model, 6)
    decoder = Decoder(model, slots=1, max_length=64)
    decoder.open(0)
    first = int(decoder.prefill(0, ids).argmax())
    for until, allowed in ((6, True), (7, False)):
        decoder.open(0, SamplingParams(forbidden=(first,), forbidden_until=until))
        decoder.prefill(0, ids)
        assert (decoder.sample([0]).tokens() == [first]) is allowed


def test_too_many_held_tokens_are_refused(model: Any) -> None:
    with pytest.raises(ValueError, match="5 forbidden tokens; a slot holds 4"):
        Decoder(model, slots=1, max_length=8).open(0, SamplingParams(forbidden=(1, 2, 3, 4, 5)))


def test_a_seed_gives_the_same_tokens_whatever_shares_the_batch(model: Any) -> None:
    def run(decoder: Decoder, slot: int, others: list[int], seed: int) -> list[int]:
        for index, other in enumerate(others):
            decoder.open(other, SamplingParams(1.2, seed=99 + index))
            decoder.prefill(other, prompt(model, 4 + index))
        decoder.open(slot, SamplingParams(1.2, 50, 0.95, seed=seed))
        decoder.prefill(slot, prompt(model, 8))
        decoder.sample(others) if others else None
        tokens = decoder.sample([slot]).tokens()
        for _ in range(10):
            tokens.append(decoder.step([*others, slot]).tokens()[-1])
        return tokens

    decoder = Decoder(model, slots=3, max_length=64)
    alone = run(decoder, 0, [], seed=7)
    assert run(decoder, 2, [0, 1], seed=7) == alone
    assert run(decoder, 0, [], seed=8) != alone


def test_philox_matches_its_published_vectors() -> None:
    # Random123's known answers for philox4x32-10: counter and key all zeros.
    assert int(philox(0, 1, 0)[0]) == 0x6627E8D5


def test_the_highest_number_of_a_draw_wins_no_token_for_certain() -> None:
    token = np.array([3094], dtype=np.uint64)
    assert int(philox(7, 1, 35, token)[0]) >> 8 == 2**24 - 1
    assert gumbel(7, 1, 35, token).item() < 17


def test_draws_follow_the_distribution() -> None:
    scores = torch.tensor([2.0, 1.0, 0.0, -1.0])
    counts = torch.zeros(4)
    for length in range(4000):
        counts[(scores + gumbel(5, 4, length)).argmax()] += 1
    assert torch.allclose(counts / 4000, torch.softmax(scores, 0), atol=0.03)
