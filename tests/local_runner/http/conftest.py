"""Runners over real bundles of tiny models, by URL, and the official OpenAI client."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import openai
import pytest

from local_runner.process.launch import LOOPBACK, Runner

Base = Callable[[str], str]


@pytest.fixture
def base(real: Callable[[str], Runner]) -> Base:
    """`base(name)` gives the base URL of the runner of that name."""
    return lambda name: f"http://{LOOPBACK}:{real(name).http_port}"


@pytest.fixture
def client(base: Base) -> Iterator[Callable[[str], openai.OpenAI]]:
    with ExitStack() as stack:
        yield lambda name: stack.enter_context(
            openai.OpenAI(base_url=base(name) + "/v1", api_key="none", max_retries=0, timeout=60)
        )
