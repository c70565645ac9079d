"""Answers and stop texts of every size: a reply, and a bound on the memory of the server behind it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import strategies as st

import mii_azure
from local_runner.process.launch import LOOPBACK, Runner
from tests.scenarios.faults.conftest import peak
from tests.scenarios.fuzz.conftest import DEADLINE_S, Tally, sizes, sound

pytestmark = pytest.mark.usefixtures("forked")

Tiny = Callable[[str, str], Path]

MOST_GROWTH = 400 << 20  # of the server's memory at its peak, whatever was sent
SIZES = st.sampled_from([0, 1, 2, 3, 15, 16, 17, 100, 255, 256, 257, 1000, 5000, 100_000, 10**6, 2**24, 2**31, 2**63])
FEW = st.sampled_from([1, 2, 17, 60])
LENGTHS = st.sampled_from([1, 20, 100, 1000, 20_000, 400_000])
TEXTS = st.builds(
    lambda word, length: (word * length)[:1_000_000], st.sampled_from(["a ", "a", " ", "é ", "\n"]), LENGTHS
)
STOPS = st.builds(
    lambda count, length: [f"{n}".rjust(length, "a") for n in range(min(count, 10**6 // length))],
    SIZES,
    st.sampled_from([1, 4, 255, 256, 257, 5000]),
)


def asked(task: str) -> st.SearchStrategy[dict[str, Any]]:
    """Requests of a task of which the counts are of all sizes."""
    values = {
        "text-generation": TEXTS,
        "fill-mask": st.builds(lambda count: "[MASK] " * count, st.sampled_from([1, 2, 100, 120, 5000])),
        "question-answering": TEXTS.map(lambda text: {"question": "Where?", "context": text}),
        "feature-extraction": TEXTS,
    }[task]
    parameters: dict[str, st.SearchStrategy[Any]] = {
        "text-generation": {
            "stop": STOPS,
            "max_new_tokens": SIZES,
            "num_return_sequences": SIZES,
            "top_n_tokens": SIZES,
            "return_details": st.booleans(),
            "do_sample": st.booleans(),
        },
        "fill-mask": {"top_k": SIZES, "targets": STOPS},
        "question-answering": {"top_k": SIZES, "max_answer_len": SIZES, "max_seq_len": SIZES, "doc_stride": SIZES},
        "feature-extraction": {"truncation": st.booleans()},
    }[task]
    inputs = st.builds(lambda value, count: [value] * count if count > 1 else value, values, FEW)
    return st.fixed_dictionaries({"inputs": inputs, "parameters": st.fixed_dictionaries({}, optional=parameters)})


@pytest.fixture(scope="module", params=[("gpt2", "text-generation"), ("bert", "fill-mask")], ids=lambda p: p[1])
def often(request: pytest.FixtureRequest, tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    yield from started(*request.param, tiny, tmp_path_factory.mktemp("sizes"))


@pytest.fixture(
    scope="module", params=[("roberta", "question-answering"), ("bert", "feature-extraction")], ids=lambda p: p[1]
)
def seldom(request: pytest.FixtureRequest, tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    yield from started(*request.param, tiny, tmp_path_factory.mktemp("sizes"))


def started(family: str, task: str, tiny: Tiny, folder: Path) -> Iterator[tuple[str, Runner]]:
    bundle = mii_azure.generate(
        task=task, model=str(tiny(family, task)), deployment_name="sizes", output=folder / "bundle"
    )
    with Runner(bundle, arguments=("--drain-seconds", "2")) as runner:
        yield task, runner


def throw(task: str, runner: Runner, tally: Tally, count: int) -> None:
    """Send requests of all sizes; each has its reply, and the server is as it was."""
    with httpx.Client(base_url=f"http://{LOOPBACK}:{runner.http_port}", trust_env=False, timeout=DEADLINE_S) as http:
        sample = (runner.bundle / "requests" / "sample.json").read_bytes()
        good = http.post("/score", content=sample)
        assert good.status_code == 200
        before = peak(runner.process.pid)

        def check(body: dict[str, Any]) -> None:
            reply = http.post("/score", json=body)
            sound(reply.status_code, reply.content, json.dumps(body)[:2000])

        tally.run(f"sizes of {task}", count, asked(task), check)
        assert peak(runner.process.pid) - before < MOST_GROWTH
        again = http.post("/score", content=sample)
        assert (again.status_code, again.content) == (200, good.content)
    assert "Traceback" not in runner.log.read_text()


@sizes(25, 300)
def test_sizes(often: tuple[str, Runner], tally: Tally, count: int) -> None:
    throw(*often, tally, count)


@pytest.mark.fuzz
@pytest.mark.timeout(1200)
def test_sizes_of_other_tasks(seldom: tuple[str, Runner], tally: Tally) -> None:
    throw(*seldom, tally, 150)
