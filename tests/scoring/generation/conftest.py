"""A small decoder on slots."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import Tiny
from tests.scoring.conftest import Served
from tests.scoring.generation.slots import TASK, slotted


@pytest.fixture
def gpt2(tiny: Tiny) -> Iterator[Served]:
    served = slotted(tiny("gpt2", TASK))
    yield served
    assert served.service.drain(20)
