"""What a chunk of a prompt costs: the most tokens for a time, and figures from two measurements."""

from dataclasses import replace

import pytest

from scoring.decoder.prompt_cost import Piece, PromptCost, fitted


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
    assert spanned.ms(8191, 1024) == cost.ms(8191, 1024)
    assert spanned.most(98_304, 60.0) == pytest.approx(1024, abs=1)


def test_short_pieces_behind_spans_cost_what_was_timed_of_them() -> None:
    """In proportion to 1,024 tokens, 512 behind 90,000 keys would have taken 36 ms; they took 50."""
    long = PromptCost(0.012, 1e-6, 3e-7, 8192)
    cost = replace(long, pieces=(Piece(256, 6.0, 4e-4, 2e-4), Piece(512, 9.0, 8e-4, 4e-4)))
    assert cost.ms(8192 * 10 + 100, 300) == pytest.approx(9.0 + 100 * 8e-4 + 81_920 * 4e-4)
    assert cost.ms(8192 * 10, 256) == pytest.approx(6.0 + 81_920 * 2e-4)
    assert cost.ms(8191, 300) == long.ms(8191, 300)
    assert cost.ms(81_920, 2048) == long.ms(81_920, 2048)
    assert cost.most(40_960, 20.0) == 256  # 512 take 25.4, by the long one 12.4
    assert cost.most(81_920, 1.0) == 256  # shorter ones take no less
    assert cost.most(16_384, 34.0) == 512  # by the long one 1,024, which no graph holds here
    assert cost.most(16_384, 300.0) == 8192
    assert cost.most(100, 34.0) == long.most(100, 34.0)
