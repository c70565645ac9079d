"""automatic-speech-recognition against plain transformers: windows, long sound, languages, batches, refusals."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import WhisperFeatureExtractor, pipeline

soundfile = pytest.importorskip("soundfile", reason="the extra speech is not installed")

from scoring.api.service import Service  # noqa: E402
from scoring.config import Deployment  # noqa: E402
from scoring.errors import LoadError  # noqa: E402
from scoring.model.loader import load, load_with  # noqa: E402
from scoring.passes.registry import catalogue  # noqa: E402
from scoring.schema.registry import task_class  # noqa: E402
from scoring.schema.speech import MOST_SECONDS, tone  # noqa: E402
from scoring.tasks import sound  # noqa: E402
from tests.tiny_models import load_tiny  # noqa: E402
from tests.tiny_whisper import LANGUAGES, tiny_whisper  # noqa: E402

TASK = "automatic-speech-recognition"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_whisper(tmp_path_factory.mktemp("whisper"))


@pytest.fixture(scope="module")
def service(folder: Path) -> Any:
    deployment = Deployment("speech", TASK)
    loaded, chosen = load_with(catalogue(deployment), deployment, folder)
    made = Service(deployment, loaded, task_class(TASK)(loaded, TASK), {})
    made.start(chosen)
    yield made
    made.drain(3)


def noise(seconds: float, seed: int = 0, rate: int = 16_000) -> Any:
    return (0.3 * np.random.default_rng(seed).standard_normal(round(seconds * rate))).clip(-1, 1).astype("float32")


def file_of(samples: Any, rate: int = 16_000, kind: str = "WAV", subtype: str | None = "FLOAT") -> str:
    made = io.BytesIO()
    soundfile.write(made, samples, rate, format=kind, subtype=subtype)
    return base64.b64encode(made.getvalue()).decode()


def ask(service: Service, inputs: Any, **parameters: Any) -> Any:
    reply = service.answer(json.dumps({"inputs": inputs, "parameters": parameters}))
    assert reply.status == 200 and isinstance(reply.body, bytes), reply.body
    return json.loads(reply.body)


def plain(folder: Path, samples: Any, **options: Any) -> tuple[str, list[dict[str, Any]]]:
    """Text and segments of transformers' own generation."""
    model, tokenizer = load_tiny(folder, TASK)
    extractor = WhisperFeatureExtractor.from_pretrained(folder)
    made = extractor(
        samples, sampling_rate=16_000, truncation=False, padding="longest", return_attention_mask=True,
        return_tensors="pt",
    )  # fmt: skip
    if made["input_features"].shape[-1] < 200:
        made = {"input_features": extractor(samples, sampling_rate=16_000, return_tensors="pt")["input_features"]}
    found = model.generate(**made, return_segments=True, **{"task": "transcribe", **options})
    segments = [
        {"timestamp": [round(float(each[end]), 2) for end in ("start", "end")],
         "text": tokenizer.decode(each["tokens"], skip_special_tokens=True)}
        for each in found["segments"][0]
    ]  # fmt: skip
    return tokenizer.decode(found["sequences"][0], skip_special_tokens=True), segments


@pytest.mark.parametrize("asked", [{}, {"language": "de"}, {"language": "french", "task": "translate"}], ids=str)
def test_a_window_is_what_plain_transformers_writes(asked: dict[str, str], folder: Path, service: Service) -> None:
    samples = noise(1.3)
    text, segments = plain(folder, samples, **asked)
    assert ask(service, file_of(samples), **asked) == {"text": text}
    timed_text, segments = plain(folder, samples, return_timestamps=True, **asked)
    told = ask(service, file_of(samples), return_timestamps=True, **asked)
    assert told == {"text": timed_text, "chunks": segments}
    assert len({text, timed_text}) == 2


def test_the_pipeline_of_transformers_answers_alike(folder: Path, service: Service) -> None:
    model, tokenizer = load_tiny(folder, TASK)
    pipe = pipeline(TASK, model, tokenizer=tokenizer, feature_extractor=WhisperFeatureExtractor.from_pretrained(folder))
    samples = noise(1.7, 3)
    plain = {"task": "transcribe", "language": "de", "num_beams": 1}  # the pipeline itself searches with five beams
    expected = pipe({"raw": samples, "sampling_rate": 16_000}, generate_kwargs=plain)["text"]
    assert ask(service, file_of(samples), language="de")["text"] == expected


def test_long_sound_goes_window_after_window(folder: Path, service: Service) -> None:
    samples = noise(5.1, 2)
    text, segments = plain(folder, samples, return_timestamps=True, language="en")
    told = ask(service, file_of(samples), language="en", return_timestamps=True)
    assert told == {"text": text, "chunks": segments}
    assert segments[-1]["timestamp"][1] > 2


def test_a_prompt_goes_before(folder: Path, service: Service) -> None:
    samples = noise(1)
    _, tokenizer = load_tiny(folder, TASK)
    ids = tokenizer.get_prompt_ids("Anna Müller", return_tensors="pt")
    text, _ = plain(folder, samples, prompt_ids=ids, language="en")
    assert ask(service, file_of(samples), prompt="Anna Müller", language="en") == {"text": text}


def test_rows_of_a_batch_are_those_alone(service: Service) -> None:
    files = [file_of(noise(seconds, seed)) for seed, seconds in enumerate((0.4, 1.9, 1.1))]
    together = ask(service, files, max_new_tokens=9)
    assert together == [ask(service, each, max_new_tokens=9) for each in files]
    assert len({each["text"] for each in together}) == 3


def test_a_window_that_is_read_for_ever_is_read_once(service: Service) -> None:
    """Of this model's own: what it writes of a tone after a prompt holds times that lead nowhere."""
    asked = {"prompt": "Anna", "task": "translate"}
    told = ask(service, tone(1.2), **asked)
    assert told["text"]
    assert ask(service, [file_of(noise(1)), tone(1.2)], **asked) == [ask(service, file_of(noise(1)), **asked), told]


def test_what_verbose_answers_tell(service: Service) -> None:
    told = ask(service, file_of(noise(1.5)), return_segments=True)
    assert told["language"] in LANGUAGES
    assert told["duration"] == 1.5
    assert [each["id"] for each in told["segments"]] == list(range(len(told["segments"])))


def test_what_is_sampled_follows_its_seed(service: Service) -> None:
    file = file_of(noise(1))
    first = [ask(service, file, temperature=0.9, seed=seed, max_new_tokens=12)["text"] for seed in (1, 1, 2)]
    assert first[0] == first[1] != first[2]
    inner = {"temperature": 0.9, "seed": 2}
    assert ask(service, file, generate_kwargs=inner, max_new_tokens=12)["text"] == first[2]


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3"])
def test_files_of_other_rates_and_channels_become_one_of_16_000(kind: str) -> None:
    rate, times = 44_100, np.arange(44_100) / 44_100
    wave = np.stack([np.sin(2 * np.pi * 440 * times), np.zeros_like(times)], 1)
    found = sound.samples_of(file_of(wave, rate, kind, None), "inputs[0]")
    assert abs(len(found) - 16_000) <= 1200  # an MP3 is padded
    middle = np.fft.rfft(found[4000:12_000])
    assert abs(np.abs(middle).argmax() * 2 - 440) <= 4
    assert 0.4 < np.abs(found[4000:12_000]).max() < 0.6  # the mean of a tone and silence


@pytest.mark.parametrize(
    ("inputs", "parameters", "sentence", "where"),
    [
        ("no base64!", {}, "not in base64", "inputs[0]"),
        (base64.b64encode(b"hello there").decode(), {}, "no sound file", "inputs[0]"),
        (tone()[:40], {}, "no sound", "inputs[0]"),
        (file_of(np.zeros(0)), {}, "holds no sound", "inputs[0]"),
        (tone(), {"language": "klingon"}, "no language 'klingon'", "parameters.language"),
        (tone(), {"max_new_tokens": 445}, "at most 60 tokens", "parameters.max_new_tokens"),
        (tone(), {"prompt": "<|en|>"}, "prompt", "parameters.prompt"),
        (tone(), {"return_timestamps": "char"}, "return_timestamps", "parameters.return_timestamps"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_what_is_refused(inputs: str, parameters: Any, sentence: str, where: str, service: Service) -> None:
    reply = service.answer(json.dumps({"inputs": inputs, "parameters": parameters}))
    assert isinstance(reply.body, bytes)
    error = json.loads(reply.body)["error"]
    assert (reply.status, error["where"]) == (400, where)
    assert sentence in error["message"] + error["where"]
    assert "BytesIO" not in error["message"]


def test_sound_is_bounded_before_it_is_read() -> None:
    with pytest.raises(Exception, match=f"{MOST_SECONDS:,} seconds"):
        sound.samples_of(file_of(np.zeros((MOST_SECONDS + 1) * 1000, "int16"), 1000, "FLAC", "PCM_16"), "inputs[0]")


def test_a_model_of_english_alone(tmp_path: Path) -> None:
    folder = tiny_whisper(tmp_path, multilingual=False)
    deployment = Deployment("speech", TASK)
    loaded = load(deployment, folder)
    task = task_class(TASK)(loaded, TASK)
    parameters = task.schema.parse_parameters({"language": "english", "return_segments": True})
    (row,) = task.encode(tone(0.5), parameters, 0)
    answer = task.decode(tone(0.5), parameters, [row], task.forward([row]))
    assert answer["language"] == "en"
    for refused in ({"language": "de"}, {"task": "translate"}):
        with pytest.raises(Exception, match="English alone"):
            task.encode(tone(), task.schema.parse_parameters(refused), 0)


def test_a_folder_without_its_extractor(folder: Path, tmp_path: Path) -> None:
    import shutil

    copied = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copied / "preprocessor_config.json").unlink()
    with pytest.raises(LoadError, match="feature extractor"):
        load(Deployment("speech", TASK), copied)


def test_features_take_the_models_type(folder: Path) -> None:
    loaded = load(Deployment("speech", TASK, dtype="bfloat16"), folder)
    task = task_class(TASK)(loaded, TASK)
    (row,) = task.encode(tone(), task.schema.parse_parameters({"max_new_tokens": 3}), 0)
    assert task.forward([row])[0][2]
    assert loaded.model.dtype == torch.bfloat16
