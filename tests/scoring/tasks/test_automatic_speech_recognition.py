"""automatic-speech-recognition against plain transformers: windows, long sound, languages, batches, refusals."""

from __future__ import annotations

import base64
import io
import json
import shutil
import sys
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import WhisperFeatureExtractor, pipeline

soundfile = pytest.importorskip("soundfile", reason="the extra speech is not installed")

from scoring.api.service import Service  # noqa: E402
from scoring.config import Deployment  # noqa: E402
from scoring.errors import InvalidInput, LoadError, RequestTimeout  # noqa: E402
from scoring.front_ends import messages, remote_answers  # noqa: E402
from scoring.limits.deadline import Deadline, within  # noqa: E402
from scoring.model.loader import load, load_with, load_without_weights  # noqa: E402
from scoring.passes.registry import catalogue  # noqa: E402
from scoring.schema.registry import task_class  # noqa: E402
from scoring.schema.speech import MOST_SECONDS, tone  # noqa: E402
from scoring.tasks import sound  # noqa: E402
from scoring.tasks.spoken_languages import language_codes  # noqa: E402
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


@pytest.fixture
def worded(folder: Path, tmp_path: Path) -> Any:
    """A service of the model with heads that align its tokens."""
    copied = shutil.copytree(folder, tmp_path / "worded")
    told = json.loads((copied / "generation_config.json").read_text())
    (copied / "generation_config.json").write_text(json.dumps({**told, "alignment_heads": [[1, 0], [1, 2]]}))
    deployment = Deployment("speech", TASK)
    loaded, chosen = load_with(catalogue(deployment), deployment, copied)
    made = Service(deployment, loaded, task_class(TASK)(loaded, TASK), {})
    made.start(chosen)
    yield made, copied
    made.drain(3)


@pytest.mark.parametrize("seconds", [1.3, 5.1])
def test_times_of_words_are_those_of_the_pipeline(worded: Any, seconds: float) -> None:
    made, folder = worded
    samples = noise(seconds, 2)
    before = ask(made, file_of(samples), language="en")
    told = ask(made, file_of(samples), language="en", return_timestamps="word", return_segments=True)
    model, tokenizer = load_tiny(folder, TASK)
    pipe = pipeline(TASK, model, tokenizer=tokenizer, feature_extractor=WhisperFeatureExtractor.from_pretrained(folder))
    plain = {"task": "transcribe", "language": "en", "num_beams": 1}
    expected = pipe({"raw": samples, "sampling_rate": 16_000}, return_timestamps="word", generate_kwargs=plain)
    assert [(each["text"], *each["timestamp"]) for each in told["chunks"]] == [
        (each["text"], *each["timestamp"]) for each in expected["chunks"]
    ]
    assert told["chunks"] and told["segments"]
    assert made.loaded.model.config._attn_implementation != "eager"  # as before, for all others
    assert ask(made, file_of(samples), language="en") == before


def test_words_of_a_model_that_cannot_align_them_are_refused(service: Service) -> None:
    reply = service.answer(json.dumps({"inputs": file_of(noise(1)), "parameters": {"return_timestamps": "word"}}))
    assert reply.status == 400 and isinstance(reply.body, bytes)
    error = json.loads(reply.body)["error"]
    assert (error["where"], "alignment_heads" in error["message"]) == ("parameters.return_timestamps", True)


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
        (tone(), {"return_timestamps": 1}, "return_timestamps", "parameters.return_timestamps"),
        (tone(), {"max_new_tokens": 60, "prompt": "Anna"}, "of the prompt", "parameters.max_new_tokens"),
        (file_of(np.full(400, np.inf)), {}, "no finite numbers", "inputs[0]"),
        (file_of(np.full(400, np.nan)), {}, "no finite numbers", "inputs[0]"),
        (file_of(np.full(400, 1e25)), {}, "full scale", "inputs[0]"),
        (file_of(np.zeros(1), 192_000), {}, "holds no sound", "inputs[0]"),
        (file_of(np.zeros(400), 16_000, "AIFF"), {}, "no sound file", "inputs[0]"),
        (file_of(np.zeros(400), 16_000, "CAF"), {}, "no sound file", "inputs[0]"),
        (file_of(np.zeros((400, 9))), {}, "9 channels", "inputs[0]"),
        (file_of(np.zeros(400), 384_000), {}, "384000 samples a second", "inputs[0]"),
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


def test_sound_is_bounded_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    long = file_of(np.zeros((MOST_SECONDS + 1) * 1000, "int16"), 1000, "FLAC", "PCM_16")
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(InvalidInput, match=f"{MOST_SECONDS:,} seconds"):
        sound.samples_of(long, "inputs[0]")


def test_a_file_takes_what_its_sound_takes_at_16_000_samples() -> None:
    file = file_of(np.zeros((192_000 * 5, 8), "int16"), 192_000, "FLAC", "PCM_16")  # 31 MB as floats
    sound.samples_of(tone(), "inputs[0]")  # what is imported
    tracemalloc.start()
    try:
        assert len(sound.samples_of(file, "inputs[0]")) == 5 * 16_000
        assert tracemalloc.get_traced_memory()[1] < 4e6
    finally:
        tracemalloc.stop()


def test_blocks_together_are_what_the_whole_is(monkeypatch: pytest.MonkeyPatch) -> None:
    file = file_of(noise(1.1, rate=44_100), 44_100)
    whole = sound.samples_of(file, "inputs[0]")
    monkeypatch.setattr(sound, "_BLOCK", 1000)
    assert np.array_equal(sound.samples_of(file, "inputs[0]"), whole)


def test_reading_ends_at_the_deadline() -> None:
    with within(Deadline.after(0.0)), pytest.raises(RequestTimeout):
        sound.samples_of(tone(), "inputs[0]")


def test_a_file_that_does_not_say_how_long_it_is() -> None:
    content = bytearray(base64.b64decode(file_of(np.zeros(16_000), 16_000, "FLAC", "PCM_16")))
    content[21:26] = [content[21] & 0xF0, 0, 0, 0, 0]  # STREAMINFO's 36 bits of samples
    with pytest.raises(InvalidInput, match="how long it is"):
        sound.samples_of(base64.b64encode(content).decode(), "inputs[0]")


def test_sounds_of_a_request_are_bounded_together(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["scoring.tasks.automatic_speech_recognition"]
    monkeypatch.setattr(module, "MOST_SECONDS", 3)
    files = [file_of(noise(1.1))] * 3
    reply = service.answer(json.dumps({"inputs": files}))
    assert reply.status == 400
    assert b"3 seconds together" in reply.body
    assert ask(service, files[:2], max_new_tokens=2)


@pytest.mark.parametrize("count", [1, 2, 160, 199, 200, 201])
def test_sound_of_a_moment(count: int, service: Service) -> None:
    assert "text" in ask(service, file_of(noise(1)[:count]), max_new_tokens=3)


def test_the_least_temperature_takes_the_likeliest(service: Service) -> None:
    file = file_of(noise(1))
    likeliest = ask(service, file, max_new_tokens=5)
    assert ask(service, file, temperature=1e-38, max_new_tokens=5) == likeliest


def test_a_prompt_leaves_room_for_an_answer(folder: Path, service: Service) -> None:
    prompt = "Anna " * 60
    assert ask(service, tone(0.5), prompt=prompt, max_new_tokens=60 - 32)["text"]
    reply = service.answer(json.dumps({"inputs": tone(), "parameters": {"prompt": prompt, "max_new_tokens": 29}}))
    assert reply.status == 400
    assert b"at most 28 tokens beside the 32 of the prompt" in reply.body


def test_tokens_are_counted(service: Service) -> None:
    before = service.statistics()
    body = {"inputs": file_of(noise(5.1, 2)), "parameters": {"return_segments": True}, "options": {"usage": True}}
    reply = service.answer(json.dumps(body))
    told = json.loads(reply.body)  # type: ignore[arg-type]
    after = service.statistics()
    made = after["generated_tokens"] - before["generated_tokens"]
    assert told["usage"] == {"prompt_tokens": 3 * 100, "completion_tokens": made}
    assert made > 0
    assert after["prompt_tokens"] - before["prompt_tokens"] == 300


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


@pytest.mark.parametrize("left_out", [(), ("is_multilingual",)], ids=str)
def test_languages_that_only_the_tokenizer_names(
    left_out: tuple[str, ...], folder: Path, service: Service, tmp_path: Path
) -> None:
    copied = Path(shutil.copytree(folder, tmp_path / "copy"))
    config = copied / "generation_config.json"
    told = json.loads(config.read_text())
    config.write_text(json.dumps({k: v for k, v in told.items() if k not in ("lang_to_id", "task_to_id", *left_out)}))
    loaded = load(Deployment("speech", TASK), copied)
    task = task_class(TASK)(loaded, TASK)
    asked = {"language": "de", "task": "translate", "max_new_tokens": 5}
    parameters = task.schema.parse_parameters(asked)
    rows = task.encode(tone(0.5), parameters, 0)
    assert task.decode(tone(0.5), parameters, rows, task.forward(rows)) == ask(service, tone(0.5), **asked)


@pytest.mark.parametrize("multilingual", [True, False])
def test_a_front_end_knows_the_languages_and_counts_alike(multilingual: bool, folder: Path, tmp_path: Path) -> None:
    own = folder if multilingual else tiny_whisper(tmp_path, multilingual=False)
    deployment = Deployment("speech", TASK)
    task: Any = task_class(TASK)(load(deployment, own), TASK)
    facts = messages.read_facts(messages.facts_of(deployment, task))
    front: Any = remote_answers._task(deployment, load_without_weights(deployment, own), facts)
    assert front._codes == task._codes
    rows = front.encode(file_of(noise(5.1)), front.schema.parse_parameters({}), 0)
    crossed, _ = messages.unpack_row(messages.pack_rows(rows)[0])
    assert crossed.prompt_tokens == 300


def test_many_languages_that_nothing_names(folder: Path) -> None:
    model, tokenizer = load_tiny(folder, TASK)
    model.generation_config.lang_to_id = None
    nothing = SimpleNamespace(get_vocab=dict)
    with pytest.raises(LoadError, match="many languages"):
        language_codes(model, nothing)
    model.generation_config.is_multilingual, model.config.vocab_size = None, 51_864
    assert language_codes(model, tokenizer) == {}


def test_a_folder_without_its_extractor(folder: Path, tmp_path: Path) -> None:
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
