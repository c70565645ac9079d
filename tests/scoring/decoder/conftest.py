"""What tests of decoders share."""

from collections.abc import Iterator

import pytest

from scoring.config import Limits
from tests.scoring.conftest import Served
from tests.tiny_models import tiny_model


@pytest.fixture(scope="module")
def lent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Service whose task encodes rows for any decoder: no token of its own ends them."""
    folder = tiny_model("llama", "text-generation", tmp_path_factory.mktemp("lent"))
    served = Served(folder, "text-generation", Limits())
    served.service.task.eos = []
    yield served
    served.service.drain(5)
