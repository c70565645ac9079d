"""`run(raw)` on whatever a body may hold, for every task, in this process."""

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from scoring.api.service import Service
from tests.scenarios.fuzz.conftest import Tally, sound
from tests.scenarios.fuzz.payloads import bodies
from tests.scoring.conftest import Served

Tiny = Callable[[str, str], Path]

FAMILIES = {
    "text-generation": "gpt2",
    "question-answering": "roberta",
    "text-classification": "bert",
    "token-classification": "bert",
    "fill-mask": "bert",
    "sentence-embeddings": "bert",
    "feature-extraction": "bert",
    "text-ranking": "bert",
    "sentence-similarity": "bert",
    "zero-shot-classification": "bert",
    "automatic-speech-recognition": "whisper",
    "conversational": "llama",
    "summarization": "bart",
    "translation": "t5",
}
EVERY_DAY = ("text-generation", "question-answering", "fill-mask")


@pytest.fixture
def log() -> Iterator[list[logging.LogRecord]]:
    """What is logged with a traceback."""
    found: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.exc_info:
                found.append(record)

    keep = Keep()
    logging.getLogger().addHandler(keep)
    yield found
    logging.getLogger().removeHandler(keep)


def send(service: Service, raw: str) -> None:
    """The reply is sound, also each event of a stream, which ends with [DONE] or an error."""
    reply = service.answer(raw)
    if isinstance(reply.body, bytes):
        sound(reply.status, reply.body, raw)
        return
    events = [event.removeprefix("data: ") for event in b"".join(reply.body).decode().split("\n\n") if event]
    errors = [json.loads(event)["error"]["code"] for event in events if event.startswith('{"error"')]
    assert not set(errors) - {"request_timeout", "not_ready"}, (events, raw)
    assert errors or events[-1] == "[DONE]", raw


def survives(tally: Tally, tiny: Tiny, task: str, count: int, log: list[Any]) -> None:
    served = Served(tiny(FAMILIES[task], task), task)
    sample = served.service.task.schema.sample
    before = served(sample)
    assert before[0] == 200
    tally.run(f"run() of {task}", count, bodies(task), lambda raw: send(served.service, raw))
    assert served(sample) == before
    assert served.service.engine.depth() == 0
    assert not [record.getMessage() for record in log]
    served.service.drain(5)


@pytest.mark.parametrize("task", EVERY_DAY)
def test_bodies(task: str, tally: Tally, tiny: Tiny, log: list[Any]) -> None:
    survives(tally, tiny, task, 40, log)


@pytest.mark.fuzz
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("task", FAMILIES)
def test_many_bodies(task: str, tally: Tally, tiny: Tiny, log: list[Any]) -> None:
    survives(tally, tiny, task, 400, log)
