"""text-generation against plain transformers: every decoder family, every parameter, batched and alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from scoring.config import Limits
from tests.conftest import Tiny
from tests.scoring.conftest import Serve, Served
from tests.scoring.generating import PROMPTS, Forwards, Steps, continuation
from tests.tiny_models import FAMILIES, tasks_of

TASK = "text-generation"
DECODERS = [family for family, task in tasks_of("decoder") if task == TASK]


@pytest.fixture
def gpt2(tiny: Tiny, serve: Serve) -> Served:
    return serve(tiny("gpt2", TASK), TASK)


def texts(answer: Any) -> list[str]:
    """The generated texts of one answer."""
    return [entry["generated_text"] for entry in answer]


@pytest.mark.parametrize("family", DECODERS)
def test_a_batch_of_mixed_lengths_gives_what_transformers_gives_alone(
    family: str, tiny: Tiny, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny(family, TASK)
    served = serve(folder, TASK)
    forwards = Forwards(served, monkeypatch)
    answers = served.ok(list(PROMPTS), max_new_tokens=16)
    assert forwards.sizes == [len(PROMPTS)]
    expected = [[prompt + text] for prompt in PROMPTS for text in continuation(folder, TASK, prompt, max_new_tokens=16)]
    assert [texts(answer) for answer in answers] == expected
    assert [served.ok(prompt, max_new_tokens=16) for prompt in PROMPTS] == answers


@pytest.mark.parametrize("full", [True, False])
def test_the_answer_is_the_pipelines(full: bool, tiny: Tiny, gpt2: Served) -> None:
    folder = tiny("gpt2", TASK)
    pipeline = transformers.pipeline(TASK, model=str(folder), device="cpu")
    expected = pipeline(PROMPTS[1], max_new_tokens=12, do_sample=False, return_full_text=full)
    assert gpt2.ok(PROMPTS[1], max_new_tokens=12, return_full_text=full) == expected


@pytest.mark.parametrize(
    "parameters",
    [
        {"repetition_penalty": 1.7},
        {"no_repeat_ngram_size": 1},
        {"no_repeat_ngram_size": 2},
        {"num_beams": 3},
        {"num_beams": 3, "length_penalty": -2.0, "early_stopping": True},
        {"num_beams": 2, "early_stopping": "never"},
        {"num_beams": 3, "num_return_sequences": 3},
        {"min_new_tokens": 8},
        {"use_cache": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("family", ["gpt2", "opt"])  # without a padding token, and with one
def test_parameters_mean_what_they_mean_to_generate(
    family: str, parameters: dict[str, Any], tiny: Tiny, serve: Serve
) -> None:
    folder = tiny(family, TASK)
    answers = serve(folder, TASK).ok(list(PROMPTS), max_new_tokens=10, **parameters)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        expected = continuation(folder, TASK, prompt, max_new_tokens=10, **parameters)
        assert texts(answer) == [prompt + text for text in expected]


def test_rows_whose_penalties_would_see_the_padding_share_a_batch_only_with_their_own_length(
    gpt2: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    forwards = Forwards(gpt2, monkeypatch)
    prompts = ["same", "a longer prompt than the others", "game"]
    gpt2.ok(prompts, max_new_tokens=4, repetition_penalty=1.5)
    assert sorted(forwards.sizes) == [1, 2]


def test_requests_that_ask_for_other_things_do_not_share_a_batch(gpt2: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    task = gpt2.service.task
    parse = task.schema.parse_parameters

    def key(**parameters: Any) -> Any:
        return task.encode("Hello", parse(parameters), 0)[0].key

    plain = key()
    for name, value in {
        "max_new_tokens": 5,
        "min_new_tokens": 3,
        "num_beams": 2,
        "repetition_penalty": 1.2,
        "no_repeat_ngram_size": 2,
        "use_cache": False,
        "length_penalty": 2.0,
        "ignore_eos": True,
    }.items():
        assert key(**{name: value}) != plain, name
    assert key(stop="x", return_full_text=False) == plain
    assert key(temperature=0.5, seed=1) != key(temperature=0.5, seed=1)


SAMPLED = {"do_sample": True, "temperature": 1.3, "top_k": 40, "top_p": 0.95}


def test_sampling_with_a_seed_gives_what_transformers_gives_after_that_seed(tiny: Tiny, gpt2: Served) -> None:
    folder = tiny("gpt2", TASK)
    for seed in (0, 7):
        expected = continuation(folder, TASK, "Hello", seed=seed, max_new_tokens=12, **SAMPLED)
        assert texts(gpt2.ok("Hello", max_new_tokens=12, seed=seed, **SAMPLED)) == ["Hello" + text for text in expected]
    expected = continuation(
        folder, TASK, "Hello", seed=7, max_new_tokens=6, num_return_sequences=3, min_p=0.01, typical_p=0.9, **SAMPLED
    )
    answer = gpt2.ok("Hello", max_new_tokens=6, seed=7, num_return_sequences=3, min_p=0.01, typical_p=0.9, **SAMPLED)
    assert texts(answer) == ["Hello" + text for text in expected]
    assert len(set(expected)) > 1


def test_a_seeded_list_is_answered_as_its_texts_alone(gpt2: Served) -> None:
    parameters: dict[str, Any] = {"max_new_tokens": 8, "seed": 5, **SAMPLED}
    together = gpt2.ok(["Hello", "Hello", "The end"], **parameters)
    assert together[0] == together[1] == gpt2.ok("Hello", **parameters)
    assert together[2] == gpt2.ok("The end", **parameters)


def test_without_a_seed_answers_differ_and_the_processes_random_numbers_stay(gpt2: Served) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    answers = {gpt2.ok("Hello", max_new_tokens=20, **SAMPLED)[0]["generated_text"] for _ in range(4)}
    assert len(answers) > 1
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ["temperature", "top_k", "top_p", "min_p", "typical_p"])
def test_a_sampling_parameter_alone_means_sampling(name: str, gpt2: Served) -> None:
    parameters: dict[str, Any] = {name: {"temperature": 1.5, "top_k": 30}.get(name, 0.5), "max_new_tokens": 20}
    sampled = gpt2.ok("Hello", seed=1, **parameters)
    assert sampled == gpt2.ok("Hello", seed=1, do_sample=True, **parameters)
    assert gpt2.ok("Hello", do_sample=False, **parameters) == gpt2.ok("Hello", max_new_tokens=20)


def test_temperature_zero_is_greedy_and_contradicts_do_sample(gpt2: Served) -> None:
    assert gpt2.ok("Hello", temperature=0, top_p=0.9, max_new_tokens=9) == gpt2.ok("Hello", max_new_tokens=9)
    assert gpt2.refused("Hello", temperature=0, do_sample=True)["where"] == "parameters.temperature"


def test_the_coolest_temperature_takes_the_likeliest_tokens(gpt2: Served) -> None:
    assert gpt2.ok("Hello", temperature=1e-40, max_new_tokens=9) == gpt2.ok("Hello", max_new_tokens=9)


def test_several_answers_need_sampling_or_beams(gpt2: Served) -> None:
    error = gpt2.refused("Hello", num_return_sequences=2)
    assert error["code"] == "invalid_parameter"
    assert "num_beams" in error["hint"]
    gpt2.refused("Hello", num_return_sequences=3, num_beams=2)
    gpt2.refused("Hello", num_return_sequences=3, num_beams=2, do_sample=True)
    assert len(gpt2.ok("Hello", num_return_sequences=2, num_beams=2, max_new_tokens=4)) == 2


def served_text(gpt2: Served, **parameters: Any) -> str:
    text: str = gpt2.ok("Hello", return_full_text=False, **parameters)[0]["generated_text"]
    return text


@pytest.mark.parametrize("search", [{}, {"num_beams": 2}], ids=["greedy", "beams"])
def test_a_stop_text_ends_the_answer_and_is_not_in_it(search: dict[str, Any], tiny: Tiny, gpt2: Served) -> None:
    whole = served_text(gpt2, max_new_tokens=24, **search)
    for stop in (whole[5:8], whole[10], whole[:2], whole[-3:]):
        expected = continuation(tiny("gpt2", TASK), TASK, "Hello", max_new_tokens=24, stop_strings=[stop], **search)[0]
        assert stop in expected
        assert served_text(gpt2, max_new_tokens=24, stop=stop, **search) == expected[: expected.index(stop)]
    assert (
        served_text(gpt2, max_new_tokens=24, stop=["never seen", whole[6:8]], **search)
        == whole[: whole.index(whole[6:8])]
    )


def test_a_stop_text_frees_the_engine_at_once(gpt2: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps(gpt2, monkeypatch)
    whole = served_text(gpt2, max_new_tokens=40)
    assert steps.count == 40
    steps.count = 0
    served_text(gpt2, max_new_tokens=40, stop=whole[4:6])
    assert steps.count < 12


def test_rows_of_one_batch_stop_each_at_its_own(gpt2: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = [gpt2.ok(p, max_new_tokens=16, return_full_text=False)[0]["generated_text"] for p in PROMPTS]
    stop = [text[4:6] for text in whole]
    forwards = Forwards(gpt2, monkeypatch)
    answers = gpt2.ok(list(PROMPTS), max_new_tokens=16, return_full_text=False, stop=stop)
    assert forwards.sizes == [len(PROMPTS)]
    for answer, text in zip(answers, whole, strict=True):
        assert answer[0]["generated_text"] == text[: min(text.index(s) for s in stop if s in text)]


@pytest.mark.parametrize("search", [{}, {"num_beams": 4}, {"temperature": 1.0}], ids=["greedy", "beams", "sampling"])
def test_a_request_that_nobody_waits_for_stops_within_a_step(
    search: dict[str, Any], gpt2: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = gpt2.service.task
    parameters = task.schema.parse_parameters({"max_new_tokens": 100, **search})
    rows = [row for item in range(2) for row in task.encode(PROMPTS[item], parameters, item)]
    steps = Steps(gpt2, monkeypatch)
    job = gpt2.service.engine.submit(rows[:1] if search else rows)
    steps.at[5] = job.cancel
    job.future.result(30)
    assert steps.count == 5


def test_a_batch_goes_on_for_those_who_still_wait(gpt2: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    task = gpt2.service.task
    parameters = task.schema.parse_parameters({"max_new_tokens": 12})
    rows = [row for item in range(2) for row in task.encode(PROMPTS[item], parameters, item)]
    expected = gpt2.ok(PROMPTS[1], max_new_tokens=12)
    steps = Steps(gpt2, monkeypatch)
    steps.at[3] = rows[0].cancelled.set
    outputs = task.forward(rows)
    assert steps.count == 12
    assert len(outputs[0][0]) <= 4  # what came before, and its padding
    assert task.decode(PROMPTS[1], parameters, rows[1:], outputs[1:]) == expected


def test_the_models_own_sampling_settings_count_once_sampling_is_asked_for(
    tiny: Tiny, gpt2: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    defaults = gpt2.service.task.defaults
    for name, value in {"do_sample": True, "temperature": 1.4, "top_k": 7}.items():
        monkeypatch.setattr(defaults, name, value)
    folder = tiny("gpt2", TASK)
    greedy = continuation(folder, TASK, "Hello", max_new_tokens=10)
    assert texts(gpt2.ok("Hello", max_new_tokens=10)) == ["Hello" + greedy[0]]
    sampled = continuation(folder, TASK, "Hello", seed=3, max_new_tokens=10, do_sample=True, temperature=1.4, top_k=7)
    assert texts(gpt2.ok("Hello", max_new_tokens=10, do_sample=True, seed=3)) == ["Hello" + sampled[0]]


def test_every_decoder_family_is_tested() -> None:
    assert set(DECODERS) == {name for name, family in FAMILIES.items() if family.kind == "decoder"}
    assert len(DECODERS) == 24


def test_an_end_token_that_is_text_ends_each_row_once(
    tiny: Tiny, gpt2: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = gpt2.service.task
    rows = task.encode(PROMPTS[1], task.schema.parse_parameters({"max_new_tokens": 16}), 0)
    end = task.forward(rows)[0][0][4]
    monkeypatch.setattr(task, "eos", [end])
    monkeypatch.setattr(task, "pad_id", end)
    answers = gpt2.ok(list(PROMPTS), max_new_tokens=16)
    assert len({len(text) for [text] in map(texts, answers)}) > 1
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        expected = continuation(tiny("gpt2", TASK), TASK, prompt, max_new_tokens=16, eos_token_id=end)
        assert texts(answer) == [prompt + expected[0]]


def test_budget_counts_what_will_be_generated(tiny: Tiny, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    served = serve(tiny("gpt2", TASK), TASK, Limits(max_batch_tokens=60))
    forwards = Forwards(served, monkeypatch)
    served.ok(["a", "b", "c", "d"], max_new_tokens=19)  # 20 tokens each
    assert forwards.sizes == [3, 1]
    forwards.sizes.clear()
    served.ok(["a", "b", "c", "d"], max_new_tokens=19, num_beams=2)
    assert forwards.sizes == [1, 1, 1, 1]
