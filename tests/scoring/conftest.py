"""A served model in this process: the real loader, engine and service, without a bundle."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from scoring.api.service import Service
from scoring.config import Deployment, Limits
from scoring.model.loader import load
from scoring.schema.registry import schema, task_class
from tests.scoring.gpu_guard import random_numbers_still_work as random_numbers_still_work


class Served:
    """One model behind a Service; calling it sends one request."""

    def __init__(self, folder: Path, task: str, limits: Limits = Limits(), **options: Any) -> None:  # noqa: B008
        deployment = Deployment("tiny", task, task_options=options, limits=limits)
        loaded = load(deployment, folder)
        self.service = Service(deployment, loaded, task_class(task)(loaded, task), {})
        self.service.start()
        self._answer = Draft202012Validator(schema(task)["response"])

    def __call__(self, payload: Any) -> tuple[int, Any]:
        """Send a payload (a str as it stands) and return status and JSON; of a stream, the list of its events."""
        reply = self.service.answer(payload if isinstance(payload, str) else json.dumps(payload))
        if isinstance(reply.body, bytes):
            return reply.status, json.loads(reply.body)
        lines = b"".join(reply.body).decode().split("\n\n")
        data = [line.removeprefix("data: ") for line in lines if line]
        return reply.status, [line if line == "[DONE]" else json.loads(line) for line in data]

    def ok(self, inputs: Any, **parameters: Any) -> Any:
        """Send canonical inputs and return the answer; it must have the published schema."""
        status, answer = self({"inputs": inputs, "parameters": parameters})
        assert status == 200, answer
        self._answer.validate(answer)
        return answer

    def refused(self, inputs: Any, **parameters: Any) -> dict[str, Any]:
        """Send canonical inputs that must be answered 400, and return the error."""
        status, answer = self({"inputs": inputs, "parameters": parameters})
        assert status == 400, answer
        error: dict[str, Any] = answer["error"]
        return error


Serve = Callable[..., Served]


@pytest.fixture(scope="session")
def serve() -> Iterator[Serve]:
    """`serve(folder, task, limits=Limits(), **options)` gives a `Served`; the same arguments, the same one."""
    known: dict[Any, Served] = {}

    def make(folder: Path, task: str, limits: Limits = Limits(), **options: Any) -> Served:  # noqa: B008
        key = (folder, task, limits, json.dumps(options, sort_keys=True))
        if key not in known:
            known[key] = Served(folder, task, limits, **options)
        return known[key]

    yield make
    for served in known.values():
        served.service.drain(5)
