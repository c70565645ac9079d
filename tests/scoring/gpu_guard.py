"""After every test on a GPU its random numbers still work: a capture that failed half-way would break them."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def random_numbers_still_work(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if request.node.get_closest_marker("gpu") and torch.cuda.is_available():
        assert torch.rand(1, device="cuda").item() < 1
