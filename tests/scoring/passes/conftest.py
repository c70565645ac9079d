"""A small encoder for passes."""

from pathlib import Path

import pytest

from tests.conftest import Tiny


@pytest.fixture
def bert(tiny: Tiny) -> Path:
    return tiny("bert", "text-classification")
