"""Streams of automatic-speech-recognition: what is told as it is written adds up to the answer without one."""

from __future__ import annotations

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("soundfile", reason="the extra speech is not installed")

from scoring.api.service import Service
from scoring.config import Deployment
from scoring.engine.row import Row
from scoring.model.loader import load_with
from scoring.passes.registry import catalogue
from scoring.schema.registry import task_class
from scoring.schema.speech import tone
from scoring.tasks.speech_streams import SpeechStream, certain
from tests.scoring.tasks.test_automatic_speech_recognition import TASK, ask, file_of, noise
from tests.tiny_whisper import tiny_whisper, whisper_tokenizer


def served(folder: Path) -> Service:
    deployment = Deployment("speech", TASK)
    loaded, chosen = load_with(catalogue(deployment), deployment, folder)
    made = Service(deployment, loaded, task_class(TASK)(loaded, TASK), {})
    made.start(chosen)
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_whisper(tmp_path_factory.mktemp("whisper"))


@pytest.fixture(scope="module")
def service(folder: Path) -> Any:
    made = served(folder)
    yield made
    made.drain(3)


def begin(service: Service, file: str, **parameters: Any) -> Any:
    reply = service.answer(json.dumps({"inputs": file, "parameters": parameters, "stream": True}))
    assert reply.status == 200, reply.body
    return reply.body


def stream(service: Service, file: str, **parameters: Any) -> tuple[list[str], Any]:
    """Texts of a stream's events, and its last event."""
    sent = b"".join(begin(service, file, **parameters)).split(b"\n\n")
    events = [json.loads(each.removeprefix(b"data: ")) for each in sent if b"{" in each]
    return [each["token"]["text"] for each in events[:-1]], events[-1]


ASKED: list[tuple[float, dict[str, Any]]] = [
    (0.4, {}),
    (1.3, {"return_timestamps": True}),
    (1.3, {"return_segments": True, "language": "de"}),
    (1.9, {"temperature": 0.9, "seed": 3}),
    (5.1, {"language": "en"}),
    (5.1, {"task": "translate", "max_new_tokens": 9}),
    (3.2, {"prompt": "Anna", "return_timestamps": True}),
]


@pytest.mark.parametrize(("seconds", "asked"), ASKED, ids=str)
@pytest.mark.parametrize("seed", [2, 5])
def test_a_stream_adds_up_to_the_whole(seconds: float, asked: dict[str, Any], seed: int, service: Service) -> None:
    file = file_of(noise(seconds, seed))
    whole = ask(service, file, **asked)
    parts, last = stream(service, file, **asked)
    assert last == {"answer": whole}
    assert "".join(parts) == whole["text"]
    assert len(parts) > 1  # and not the whole at once


def test_windows_of_thirty_seconds(tmp_path: Path) -> None:
    service = served(tiny_whisper(tmp_path, seconds=30))
    try:
        for seconds in (3, 40):
            file = file_of(noise(seconds, seconds, 4000), 4000, subtype="PCM_16")
            whole = ask(service, file, language="en", max_new_tokens=30)
            parts, last = stream(service, file, language="en", max_new_tokens=30)
            assert last == {"answer": whole}
            assert "".join(parts) == whole["text"]
            assert len(parts) > 3
    finally:
        service.drain(3)


def test_a_window_that_is_read_again_is_told_once(service: Service) -> None:
    """Of this model's own: what it writes of a tone after a prompt holds times that lead nowhere."""
    asked = {"prompt": "Anna", "task": "translate"}
    whole = ask(service, tone(1.2), **asked)
    parts, last = stream(service, tone(1.2), **asked)
    assert ("".join(parts), last) == (whole["text"], {"answer": whole})
    assert "Anna" not in whole["text"]


def test_streams_share_batches_with_others(service: Service) -> None:
    files = [file_of(noise(seconds, seed)) for seed, seconds in enumerate((0.4, 1.9, 1.1, 1.5, 0.8, 1.2))]
    asked: dict[str, Any] = {"language": "fr", "return_timestamps": True}
    whole = [ask(service, each, **asked) for each in files]
    with ThreadPoolExecutor(6) as pool:
        ways: list[Any] = [ask, stream]
        jobs = [pool.submit(ways[n % 2], service, file, **asked) for n, file in enumerate(files)]
        found: list[Any] = [job.result() for job in jobs]
    for number, expected in enumerate(whole):
        if number % 2:
            parts, last = found[number]
            assert ("".join(parts), last) == (expected["text"], {"answer": expected})
        else:
            assert found[number] == expected


def test_who_leaves_ends_the_reading(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    task: Any = service.task
    ended, usual = threading.Event(), task.forward

    def forward(*given: Any) -> Any:
        try:
            return usual(*given)
        finally:
            ended.set()

    monkeypatch.setattr(task, "forward", forward)
    before = service.statistics()["generated_tokens"]
    events = begin(service, file_of(noise(300, rate=2000), 2000, subtype="PCM_16"))
    next(events)
    events.close()
    assert ended.wait(20)
    assert service.statistics()["generated_tokens"] - before < 1000
    assert ask(service, file_of(noise(1)), max_new_tokens=3)["text"]


def test_beams_are_told_at_the_end(folder: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(folder, tmp_path / "copy"))
    told = json.loads((copied / "generation_config.json").read_text())
    (copied / "generation_config.json").write_text(json.dumps({**told, "num_beams": 2}))
    service = served(copied)
    try:
        file = file_of(noise(1.3))
        whole = ask(service, file, language="en")
        parts, last = stream(service, file, language="en")
        assert ("".join(parts), last) == (whole["text"], {"answer": whole})
        assert len(parts) <= 1
    finally:
        service.drain(3)


def test_windows_that_may_be_left_out_are_not_told_before(service: Service) -> None:
    told = deepcopy(service.loaded.model.generation_config)
    assert certain(told)
    told.no_speech_threshold = 0.6
    assert not certain(told)


A, B, T = 70, 71, 10_000  # tokens of text, and the first that is a time


@pytest.mark.parametrize(
    ("window", "kept"),
    [
        ([A, B], [A, B]),
        ([T, A, T + 5, T + 5, B, T + 9], [A, B]),  # one time alone ends it: nothing follows
        ([T, A, T + 5, T + 5, B], [A]),  # cut off within a part, which the next window reads again
        ([T, A, T + 5, T + 5, B, T + 9, T + 9], [A, B]),
        ([T, A, T + 5, B], [A, B]),
        ([T, T, A], []),
        ([T, T, T, A, T + 1], [A]),
        ([A, 3, B], [A]),  # an end, and padding
    ],
    ids=str,
)
def test_what_stays_of_a_window(window: list[int], kept: list[int]) -> None:
    tokenizer, sent = whisper_tokenizer(), list[str]()
    row = Row(
        {"input_ids": [0]}, 0, extra=SimpleNamespace(told=[]), emit=lambda event: sent.append(event["token"]["text"])
    )
    following = SpeechStream(row, tokenizer, T, frozenset({3}))
    for token in window:
        following.push(token)
    following.end()
    assert "".join(sent) == "".join(tokenizer.decode([token]) for token in kept)
