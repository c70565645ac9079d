"""What a chunk of a prompt costs: the most tokens for a time, and figures from two measurements."""

import pytest

from scoring.decoder.prompt_cost import PromptCost, fitted


@pytest.mark.parametrize("cost", [PromptCost(0.009, 3e-7 * 28), PromptCost(0.04), PromptCost(1e-4, 1e-9)])
@pytest.mark.parametrize("position", [0, 500, 100_000])
def test_the_most_tokens_of_a_time_take_no_longer_and_one_more_would(cost: PromptCost, position: int) -> None:
    count = cost.most(position, 40.0)
    assert cost.ms(position, count) <= 40.0 * (1 + 1e-9) < cost.ms(position, count + 2)


def test_it_is_fitted_to_a_chunk_at_the_start_and_one_further_on() -> None:
    real = PromptCost(0.01, 2e-6)
    found = fitted(2048, real.ms(0, 2048), real.ms(16_384, 2048), 16_384)
    assert (found.token, found.key) == (pytest.approx(real.token), pytest.approx(real.key))
    assert fitted(128, 5.0, 5.0, 0) == PromptCost(5.0 / 128)
    slower_at_the_start = fitted(2048, 20.0, 19.0, 1000)
    assert slower_at_the_start.key == 0 < slower_at_the_start.token


def test_keys_in_spans_have_a_cost_of_their_own() -> None:
    cost = fitted(1024, 10.0, 24.0, 16_384)
    spanned = cost.with_spans(1024, 98_304, 60.0)
    assert spanned.ms(98_304, 1024) == pytest.approx(60.0)
    assert spanned.ms(16_384, 1024) == cost.ms(16_384, 1024)
    assert spanned.most(98_304, 60.0) == pytest.approx(1024, abs=1)
