"""/v1/audio by the official openai client, and huggingface_hub's, over a real bundle of a tiny Whisper."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pytest
from fastapi import FastAPI
from huggingface_hub import InferenceClient
from starlette.testclient import TestClient

pytest.importorskip("soundfile", reason="the extra speech is not installed")
pytest.importorskip("python_multipart", reason="the extra speech is not installed")

from local_runner.http import audio
from local_runner.process.launch import Runner
from local_runner.protocol.audio_requests import TASK, rendered
from scoring.config import Deployment, Limits
from scoring.errors import PayloadTooLarge
from scoring.schema.speech import tone

FILE = base64.b64decode(tone(1.2))


@pytest.fixture(scope="module")
def url(real: Callable[[str], Runner]) -> str:
    return f"http://127.0.0.1:{real('speech').http_port}"


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as opened:
        yield opened


def scored(url: str, **parameters: Any) -> Any:
    body = {"inputs": base64.b64encode(FILE).decode(), "parameters": parameters}
    return httpx.post(f"{url}/score", json=body, timeout=60).json()


def test_transcriptions_in_every_form(url: str, client: openai.OpenAI) -> None:
    asked: Any = {"model": "speech", "file": ("talk.wav", FILE), "language": "de", "temperature": 0}
    plain = scored(url, language="de")["text"]
    made = client.audio.transcriptions.create(**asked)
    assert made.text == plain
    assert client.audio.transcriptions.create(**asked, response_format="text") == plain + "\n"
    verbose = client.audio.transcriptions.create(
        **asked, response_format="verbose_json", timestamp_granularities=["segment"]
    )
    told = scored(url, language="de", return_segments=True)
    assert (verbose.text, verbose.language, verbose.duration) == (told["text"], "de", 1.2)
    assert [each.model_dump(exclude_unset=True) for each in verbose.segments] == told["segments"]
    srt = client.audio.transcriptions.create(**asked, response_format="srt")
    vtt = client.audio.transcriptions.create(**asked, response_format="vtt")
    assert (srt, vtt) == tuple(rendered(told, form, "/v1/audio/transcriptions")[0] for form in ("srt", "vtt"))


@pytest.mark.parametrize("seconds", [1.2, 7.5], ids=["one-window", "several"])
def test_a_stream_is_told_as_it_is_written(url: str, client: openai.OpenAI, seconds: float) -> None:
    asked: Any = {"model": "speech", "file": ("talk.wav", base64.b64decode(tone(seconds))), "language": "de"}
    whole = client.audio.transcriptions.create(**asked).text
    events = list(client.audio.transcriptions.create(**asked, stream=True))
    assert {each.type for each in events[:-1]} == {"transcript.text.delta"}
    assert len(events) > 4
    assert (events[-1].type, events[-1].text) == ("transcript.text.done", whole)
    assert "".join(each.delta for each in events[:-1]) == whole
    form = {"model": "speech", "language": "de", "stream": "true"}
    raw = httpx.post(f"{url}/v1/audio/transcriptions", data=form, files={"file": asked["file"][1]}, timeout=60)
    assert raw.headers["content-type"].startswith("text/event-stream")
    assert raw.text.endswith("data: [DONE]\n\n")


def test_words_are_told_with_their_times() -> None:
    words = [{"text": " One.", "timestamp": [0.0, 0.5]}]
    told = {"text": " One.", "language": "en", "duration": 1.0, "segments": [], "chunks": words}
    body = json.loads(rendered(told, "verbose_json", "")[0])
    assert body["words"] == [{"word": "One.", "start": 0.0, "end": 0.5}]


def test_translations_are_into_english(url: str, client: openai.OpenAI) -> None:
    with pytest.warns(DeprecationWarning):  # the client's own
        made = client.audio.translations.create(model="speech", file=("a.wav", FILE), prompt="Anna")
    assert made.text == scored(url, task="translate", prompt="Anna")["text"] != scored(url)["text"]


def test_forms_of_subtitles() -> None:
    answer = {"text": " One. Two.", "language": "en", "duration": 3700.0, "segments": [
        {"start": 0.0, "end": 1.5, "text": " One."}, {"start": 3661.25, "end": 3662.0, "text": " Two."},
    ]}  # fmt: skip
    srt, vtt = (rendered(answer, form, "")[0] for form in ("srt", "vtt"))
    assert srt == "1\n00:00:00,000 --> 00:00:01,500\nOne.\n\n2\n01:01:01,250 --> 01:01:02,000\nTwo.\n"
    assert vtt.startswith("WEBVTT\n\n00:00:00.000 --> 00:00:01.500\nOne.\n\n01:01:01.250")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": "yaml"}, "response_format"),
        ({"timestamp_granularities": ["word"]}, "timestamp_granularities"),
        ({"timestamp_granularities": ["line"], "response_format": "verbose_json"}, "timestamp_granularities"),
        # The tiny model's generation config has no alignment_heads.
        ({"timestamp_granularities": ["word"], "response_format": "verbose_json"}, "timestamp_granularities"),
        ({"language": "klingon"}, "language"),
        ({"stream": True, "response_format": "srt"}, "stream"),
        ({"extra_body": {"stream": "perhaps"}}, "stream"),
        ({"extra_body": {"vad": "on"}}, "vad"),
        ({"file": ("a.wav", b"no sound at all")}, "file"),
        ({"file": ("a.wav", b"")}, "file"),
        ({"model": "other"}, "model"),
    ],
    ids=str,
)
def test_every_refusal_names_its_field(fields: dict[str, Any], param: str, client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "speech", "file": ("a.wav", FILE)} | fields
    with pytest.raises(openai.APIStatusError) as caught:
        client.audio.transcriptions.create(**asked)
    assert caught.value.status_code in (400, 404)
    assert caught.value.body["param"] == param  # type: ignore[index]
    assert param != "file" or "base64" not in caught.value.message  # the caller sent bytes


def test_bodies_that_are_no_forms(url: str) -> None:
    path = f"{url}/v1/audio/transcriptions"
    form = {"content-type": "multipart/form-data; boundary=x"}
    for told in (
        httpx.post(path, json={"file": "x"}),
        httpx.post(path, content=b"--x\r\nbroken", headers=form),
        httpx.post(path, content=b"a", headers={"content-type": "multipart/form-data"}),
        httpx.post(path, files={"other": FILE}),
        httpx.post(path, data={"model": "speech"}, files={"model": (None, "speech")}),
    ):
        assert told.status_code == 400, told.text
        assert told.json()["error"]["code"] == "invalid_input"


def test_huggingface_hub_posts_the_file_itself(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # it asks no hub, but this runner
    assert InferenceClient(model=url).automatic_speech_recognition(FILE).text == scored(url)["text"]


@pytest.mark.parametrize("door", ["form", "root"])
def test_a_file_that_base64_makes_too_large_is_told_in_its_own_bytes(door: str) -> None:
    scored: list[str] = []

    async def score(body: str, headers: Any) -> Any:
        scored.append(body)
        return SimpleNamespace(status=200, body=b'{"text": "so"}', chunks=None)

    deployment = Deployment("speech", TASK, limits=Limits(max_payload_bytes=4000))
    host: Any = SimpleNamespace(deployment=deployment, max_body=9000, score=score)
    app = FastAPI()
    audio.add(app, host, lambda request: None)

    def send(size: int) -> None:
        if door == "root":
            scored.append(audio.as_json(host, b"x" * size).decode())
        else:
            TestClient(app).post("/v1/audio/transcriptions", files={"file": b"x" * size})

    with pytest.raises(PayloadTooLarge, match=r"The file has 3,500 bytes; 2,9\d\d have room") as caught:
        send(3500)
    assert caught.value.where == ("file" if door == "form" else "inputs[0]")
    room = int(re.findall(r"2,9\d\d", str(caught.value))[0].replace(",", ""))
    send(room)
    assert len(scored[0]) <= 4000
    with pytest.raises(PayloadTooLarge):
        send(room + 3)


def test_the_document_describes_the_form(url: str) -> None:
    described = httpx.get(f"{url}/openapi.json").json()["paths"]["/v1/audio/transcriptions"]["post"]
    form = described["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert {"file", "language", "response_format"} <= set(form["properties"])
