"""How much was thrown, once everything has been."""

import pytest

from tests.scenarios.fuzz.conftest import Tally

LEAST = 10_000


@pytest.mark.fuzz
def test_ten_thousand_inputs(tally: Tally) -> None:
    assert sum(tally.counts.values()) >= LEAST, tally.counts
