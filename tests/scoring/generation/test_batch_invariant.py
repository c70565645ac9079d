"""A service with `batch_invariant`: answers and log-probabilities alone equal those among others, bit for bit."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from scoring.api.service import Service
from scoring.config import Deployment, Limits
from scoring.model.info import facts_of
from scoring.model.loader import load
from scoring.passes.base import Hardware
from scoring.passes.registry import catalogue
from scoring.passes.runner import choose
from scoring.schema.registry import task_class
from tests.scoring.conftest import Serve
from tests.tiny_models import tiny_model

ASKED = {"max_new_tokens": 12, "return_details": True, "top_n_tokens": 2, "do_sample": True, "seed": 3}


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    limits = Limits(batch_invariant=True, context_length=64, max_batch_size=8)
    deployment = Deployment("tiny", "text-generation", limits=limits)
    loaded = load(deployment, tiny_model("qwen2", "text-generation", tmp_path / "m"))
    made = Service(deployment, loaded, task_class(deployment.task)(loaded, deployment.task), {})
    facts = facts_of(loaded.model, generative=True)
    made.start(choose(catalogue(deployment), facts, Hardware.here(), deployment.optimisation))
    yield made
    made.drain(5)


def test_answers_and_their_log_probabilities_are_the_same_bits_in_company(service: Service) -> None:
    told = service.metadata()
    assert told["limits"]["batch_invariant"] is True
    assert told["batching"]["rows"] == "one row at a time"
    assert "sums of one order" in next(each["reason"] for each in told["passes"] if each["name"] == "static_decode")
    prompts = ["the quick brown", "a", "lazy dogs sleep in the sun and the moon", "fox"]

    def ask(number: int) -> None:
        body = {"inputs": prompts[number % 4], "parameters": ASKED}
        told = service.answer(json.dumps(body)).body
        assert isinstance(told, bytes)
        answered[number] = told

    answered: dict[int, bytes] = {}
    for number in range(4):
        ask(number)
    alone = dict(answered)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(b"logprob" in found for found in alone.values())
    assert [answered[number] for number in range(12)] == 3 * [alone[number] for number in range(4)]


def test_other_models_rows_run_one_at_a_time(serve: Serve, tmp_path: Path) -> None:
    folder = tiny_model("bert", "text-classification", tmp_path / "m")
    served = serve(folder, "text-classification", Limits(batch_invariant=True))
    texts = ["good", "a much longer and rather bad text", "fine"]
    together = served.ok(texts)
    assert [served.ok(text) for text in texts] == together or [served.ok(text)[0] for text in texts] == together
    keys = {
        row.key
        for text in texts
        for row in served.service.task.encode(text, served.service.task.schema.parse_parameters({}), 0)
    }
    assert len(keys) == len(texts)
