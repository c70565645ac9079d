"""What ends a text, and settings of a generation config that slots or batches do not follow: as `generate` has them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig

from scoring.config import Limits
from scoring.decoder.decoder import Decoder
from scoring.generation.settings import suits_batches, suits_slots
from tests.conftest import Tiny
from tests.scoring.conftest import Served
from tests.scoring.generating import PROMPTS, Forwards, continuation, plain
from tests.scoring.model_files import changed

TASK = "text-generation"
Serving = Callable[..., Served]


@pytest.fixture
def serving() -> Iterator[Serving]:
    """`serving(folder, slots)` serves a folder, on slots or by `generate` alone."""
    running: list[Served] = []

    def make(folder: Path, slots: bool) -> Served:
        served = Served(folder, TASK, Limits(max_batch_size=8))
        running.append(served)
        if slots:
            served.service.loaded.runtime.decoder = Decoder(served.service.loaded.model, 4, 128)
        return served

    yield make
    for served in running:
        served.service.drain(5)


def texts(served: Served, prompts: Any = PROMPTS, **parameters: Any) -> list[str]:
    answers = served.ok(list(prompts), return_full_text=False, **parameters)
    return [entry[0]["generated_text"] for entry in answers]


def tokens(folder: Path, prompt: str, count: int) -> list[int]:
    """The first tokens that the model generates if nothing ends it."""
    model, tokenizer = plain(folder, TASK)
    inputs = tokenizer(prompt, return_tensors="pt")
    made = model.generate(**inputs, do_sample=False, max_new_tokens=count, min_new_tokens=count)
    return [int(token) for token in made[0, inputs.input_ids.shape[1] :]]


@pytest.mark.parametrize("slots", [True, False], ids=["slots", "generate"])
@pytest.mark.parametrize("place", ["generation_config.json", "config.json", "tokenizer_config.json"])
def test_a_token_that_any_of_the_files_names_ends_a_text(
    place: str, slots: bool, tiny: Tiny, tmp_path: Path, serving: Serving
) -> None:
    source = tiny("qwen2", TASK)
    made = tokens(source, PROMPTS[1], 12)
    end = next(token for at, token in enumerate(made) if at >= 4 and token not in made[:at])
    word = plain(source, TASK)[1].convert_ids_to_tokens(end)
    folder = changed(source, tmp_path / "model", "tokenizer_config.json", extra_special_tokens=[word])
    told: dict[str, Any] = {"eos_token": word} if place.startswith("tokenizer") else {"eos_token_id": end}
    changed(folder, folder, place, **told)
    [answer] = texts(serving(folder, slots), [PROMPTS[1]], max_new_tokens=12)
    assert answer == plain(folder, TASK)[1].decode(made[: made.index(end)], skip_special_tokens=True)


def test_an_end_token_that_only_a_class_of_configs_names_ends_nothing(
    tiny: Tiny, tmp_path: Path, serving: Serving
) -> None:
    source = tiny("qwen2", TASK)
    made = tokens(source, PROMPTS[1], 12)
    folder = changed(source, tmp_path / "model", "config.json", eos_token_id=made[4])  # a word, for the tokenizer
    assert texts(serving(folder, True), [PROMPTS[1]], max_new_tokens=12) == continuation(
        source, TASK, PROMPTS[1], max_new_tokens=12
    )


@pytest.mark.parametrize("slots", [True, False], ids=["slots", "generate"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2"])
def test_stop_strings_of_the_model_end_a_text(
    family: str, slots: bool, tiny: Tiny, tmp_path: Path, serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny(family, TASK)
    free = [continuation(source, TASK, prompt, max_new_tokens=16)[0] for prompt in PROMPTS]
    stops = [free[0][6:8], free[1][9:11], PROMPTS[2][-1] + free[2][:1]]  # the last begins in the prompt
    folder = changed(source, tmp_path / "model", "generation_config.json", stop_strings=stops)
    served = serving(folder, slots)
    wanted = [continuation(folder, TASK, prompt, max_new_tokens=16)[0] for prompt in PROMPTS]
    assert wanted != free
    forwards = Forwards(served, monkeypatch)
    assert texts(served, max_new_tokens=16) == wanted
    assert len(forwards.sizes) == (0 if slots else 1)  # one batch
    events = served({"inputs": PROMPTS[0], "parameters": {"max_new_tokens": 16}, "stream": True})[1]
    assert "".join(event["token"]["text"] for event in events if "token" in event) == wanted[0]
    ended = next(text for text, own, all_of_it in zip(PROMPTS, wanted, free, strict=True) if own != all_of_it)
    [told] = served.ok([ended], max_new_tokens=16, return_details=True)
    assert told[0]["details"]["finish_reason"] == "stop_sequence"
    beams = texts(served, max_new_tokens=12, num_beams=2)
    assert beams == [continuation(folder, TASK, prompt, max_new_tokens=12, num_beams=2)[0] for prompt in PROMPTS]


def test_a_special_token_among_the_stop_strings_ends_a_text(tiny: Tiny, tmp_path: Path, serving: Serving) -> None:
    source = tiny("qwen2", TASK)
    made = tokens(source, PROMPTS[1], 12)
    end = next(token for at, token in enumerate(made) if at >= 4 and token not in made[:at])
    word = plain(source, TASK)[1].convert_ids_to_tokens(end)
    folder = changed(source, tmp_path / "model", "tokenizer_config.json", extra_special_tokens=[word])
    changed(folder, folder, "generation_config.json", stop_strings=[word])
    wanted = continuation(folder, TASK, PROMPTS[1], max_new_tokens=12)
    assert texts(serving(folder, True), [PROMPTS[1]], max_new_tokens=12) == wanted


@pytest.mark.parametrize(
    "settings",
    [
        {"watermarking_config": {"greenlist_ratio": 0.25, "bias": 9.0, "hashing_key": 7, "seeding_scheme": "lefthash"}},
        {"sequence_bias": [[[9], 30.0]]},
        {"prompt_lookup_num_tokens": 2},
        {"num_beams": 2, "length_penalty": 2.0},
        {"guidance_scale": 1.5},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_a_setting_that_slots_do_not_know_is_left_to_generate(
    settings: dict[str, Any], tiny: Tiny, tmp_path: Path, serving: Serving
) -> None:
    folder = changed(tiny("gpt2", TASK), tmp_path / "model", "generation_config.json", **settings)
    wanted = [continuation(folder, TASK, prompt, max_new_tokens=8)[0] for prompt in PROMPTS]
    assert texts(serving(folder, True), max_new_tokens=8) == wanted


def test_only_settings_that_are_known_to_do_no_harm_go_to_slots_and_into_batches() -> None:
    neutral = GenerationConfig(
        do_sample=True, temperature=0.7, top_k=5, max_new_tokens=3, cache_implementation="hybrid"
    )
    assert suits_slots(neutral) and suits_batches(neutral, False)
    neutral.chat_format = "chatml"  # an entry that transformers does not know: `generate` passes it over too
    assert suits_slots(neutral)
    for name in ("watermarking_config", "token_healing", "max_time", "dola_layers", "penalty_alpha", "constraints"):
        odd = GenerationConfig()
        setattr(odd, name, 5)
        assert not suits_slots(odd) and not suits_batches(odd, True)
    begun = GenerationConfig(forced_bos_token_id=7)  # at the first place of what `generate` is given, padding included
    assert not suits_slots(begun) and suits_batches(begun, True) and not suits_batches(begun, False)
    odd = GenerationConfig(do_sample=False, typical_p=0.3)
    assert suits_slots(odd)
    odd.do_sample = True
    assert not suits_slots(odd) and suits_batches(odd, False)


def test_sampling_takes_as_many_tokens_as_generate_does(tiny: Tiny, serving: Serving) -> None:
    served = serving(tiny("gpt2", TASK), True)
    running: list[Any] = []
    served.service.loaded.runtime.decoder.open = lambda slot, sampling, *_: running.append(sampling) or 0  # type: ignore[method-assign,union-attr]
    served({"inputs": "Hello", "parameters": {"do_sample": True, "max_new_tokens": 2}})
    assert [sampling.top_k for sampling in running] == [50]
