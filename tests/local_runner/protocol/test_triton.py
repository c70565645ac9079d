"""Triton's official clients, unmodified, against a real bundle of a tiny model, over gRPC and over REST."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from local_runner.process.launch import LOOPBACK, Runner

#: `make clients` names one whose client is newer than the server's protobuf allows.
PYTHON = os.environ.get("MII_AZURE_TRITON_PYTHON", sys.executable)
TEXTS = ["a quick brown fox", "a lazy dog"]
Real = Callable[[str], Runner]
Told = dict[str, Any]


@pytest.fixture(scope="module", params=["grpc", "http"])
def told(real: Real, request: pytest.FixtureRequest) -> Told:
    """What the client was answered, call by call."""
    runner = real("embed")
    port = runner.grpc_port if request.param == "grpc" else runner.http_port
    script = Path(__file__).with_name("triton_client.py")
    done = subprocess.run([PYTHON, str(script), request.param, str(port)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def scored(real: Real) -> Any:
    """What POST /score answers."""
    url = f"http://{LOOPBACK}:{real('embed').http_port}/score"
    return httpx.post(url, json={"inputs": TEXTS}, timeout=60).json()


def test_states_and_metadata(told: Told) -> None:
    assert told["states"] == [True, True, True]
    assert told["metadata"] == {"server": "mii-azure", "inputs": [["inputs", "BYTES"], ["request", "BYTES"]]}


def test_texts_are_answered_as_score_answers_them(told: Told, scored: Any) -> None:
    assert told["texts"] == scored
    assert told["whole"] == scored


def test_the_clients_own_defaults_are_taken(told: Told, scored: Any) -> None:
    assert told["defaults"] == scored
    assert told["versions"] == [True, True]
    assert told["no_route"] in ("Not Found.", "no such thing")


def test_parameters_and_the_request_id_travel(told: Told, scored: Any) -> None:
    assert told["parameters"]["id"] == "seven"
    assert told["parameters"]["answers"] != scored
    assert len(told["parameters"]["answers"]) == len(TEXTS)


def test_several_requests_at_once(told: Told, scored: Any) -> None:
    assert len(told["at_once"]) == 8
    for answer in told["at_once"]:
        for one, other in zip(answer, scored, strict=True):  # in batches of any size
            assert one == pytest.approx(other, abs=1e-5)


def test_refusals_are_sentences(told: Told) -> None:
    assert "No model 'other' here" in told["another_model"]
    assert "nowhere" in told["unknown_tensor"]
