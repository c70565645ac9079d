"""summarization and translation against plain transformers: T5, BART, Marian, and mBART's languages."""

from __future__ import annotations

import json
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import MBartConfig, MBartForConditionalGeneration, MBartTokenizer

from tests import tiny_tokenizers
from tests.conftest import Packaged, Tiny
from tests.scoring.conftest import Serve, Served
from tests.scoring.generating import PROMPTS, continuation, plain
from tests.tiny_models import CONTEXT, tasks_of

KEYS = {"summarization": "summary_text", "translation": "translation_text"}
#: As in the config of t5-small.
T5_TASKS = {
    "summarization": {
        "prefix": "summarize: ",
        "num_beams": 2,
        "max_length": 20,
        "min_length": 6,
        "length_penalty": 2.0,
    },
    "translation_en_to_de": {"prefix": "translate English to German: ", "num_beams": 3, "max_length": 30},
    "translation_en_to_fr": {"prefix": "translate English to French: ", "num_beams": 3, "max_length": 30},
}


def text_of(answer: Any, task: str = "translation") -> str:
    """The one text of an answer."""
    [entry] = answer
    text: str = entry[KEYS[task]]
    return text


@pytest.mark.parametrize(("family", "task"), tasks_of("encoder-decoder"))
def test_a_batch_of_mixed_lengths_gives_what_transformers_gives_alone(
    family: str, task: str, tiny: Tiny, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny(family, task)
    served = serve(folder, task)
    sizes: list[int] = []
    forward = served.service.task.forward
    monkeypatch.setattr(
        served.service.task, "forward", lambda rows, between: sizes.append(len(rows)) or forward(rows, between)
    )
    for options in ({}, {"num_beams": 1}, {"num_beams": 3, "num_return_sequences": 2}):  # the model's own beams first
        sizes.clear()
        answers = served.ok(list(PROMPTS), max_new_tokens=12, **options)
        assert sizes == [len(PROMPTS)]
        expected = [continuation(folder, task, prompt, max_new_tokens=12, **options) for prompt in PROMPTS]
        assert [[entry[KEYS[task]] for entry in answer] for answer in answers] == expected
        assert [served.ok(prompt, max_new_tokens=12, **options) for prompt in PROMPTS] == answers


@pytest.mark.parametrize("family", ["bart", "marian"])
def test_the_models_own_lengths_are_the_default(family: str, tiny: Tiny, serve: Serve) -> None:
    folder = tiny(family, "translation")
    served = serve(folder, "translation")
    model, _ = plain(folder, "translation")
    assert model.generation_config.max_length == 32
    for prompt in PROMPTS:
        assert text_of(served.ok(prompt)) == continuation(folder, "translation", prompt)[0]
        for options in ({"max_length": 9}, {"min_length": 12, "max_length": 20}, {"max_length": 6, "num_beams": 1}):
            assert text_of(served.ok(prompt, **options)) == continuation(folder, "translation", prompt, **options)[0]


def test_sampling_with_a_seed(tiny: Tiny, serve: Serve) -> None:
    folder = tiny("t5", "summarization")
    options: dict[str, Any] = {"do_sample": True, "temperature": 1.2, "max_new_tokens": 12, "seed": 4}
    expected = continuation(folder, "summarization", PROMPTS[1], **options)
    assert text_of(serve(folder, "summarization").ok(PROMPTS[1], **options), "summarization") == expected[0]


class TestLengths:
    def test_a_text_past_the_context_is_refused_or_cut(self, tiny: Tiny, serve: Serve) -> None:
        folder = tiny("bart", "summarization")
        served = serve(folder, "summarization")
        long = "wonderful " * CONTEXT
        error = served.refused(["short", long])
        assert (error["code"], error["where"]) == ("prompt_too_long", "inputs[1]")
        assert "truncation" in error["hint"]
        _, tokenizer = plain(folder, "summarization")
        cut = tokenizer.decode(tokenizer(long, truncation=True)["input_ids"], skip_special_tokens=True)
        assert len(tokenizer(cut)["input_ids"]) == CONTEXT
        assert served.ok(long, truncation=True) == served.ok(cut)

    def test_an_answer_past_the_context_is_refused(self, tiny: Tiny, serve: Serve) -> None:
        served = serve(tiny("bart", "summarization"), "summarization")
        assert served.refused("a", max_new_tokens=CONTEXT)["hint"] == f"Ask for {CONTEXT - 1} or fewer."
        served.ok("a", max_new_tokens=CONTEXT - 1, num_beams=1)


# -- T5 ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prefixed(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny T5 whose config says what t5-small's says."""
    folder = tmp_path_factory.mktemp("t5") / "model"
    shutil.copytree(tiny("t5", "translation"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"task_specific_params": T5_TASKS}))
    return folder


def read_by(served: Served, value: str, **parameters: Any) -> str:
    """The text that the encoder gets for an input."""
    task = served.service.task
    [row] = task.encode(value, task.schema.parse_parameters(parameters), 0)
    text: str = task.tokenizer.decode(row.features["input_ids"], skip_special_tokens=True)
    return text


GERMAN, FRENCH = "translate English to German: ", "translate English to French: "


@pytest.mark.parametrize(
    ("parameters", "prefix"),
    [
        ({}, GERMAN),
        ({"src_lang": "en", "tgt_lang": "fr"}, FRENCH),
        ({"tgt_lang": "fr"}, FRENCH),
        ({"task_type": "translation_en_to_fr"}, FRENCH),
        ({"task_type": "translation_en_to_ro"}, "translate English to Romanian: "),
        ({"task_type": "translation_de_to_en"}, "translate German to English: "),
        ({"task_type": "translation_en_to_de", "tgt_lang": "fr"}, FRENCH),
    ],
    ids=str,
)
def test_languages_become_t5s_prefix(parameters: dict[str, Any], prefix: str, prefixed: Path, serve: Serve) -> None:
    served = serve(prefixed, "translation")
    assert read_by(served, "The house", **parameters) == f"{prefix}The house"
    expected = continuation(prefixed, "translation", f"{prefix}The house", num_beams=3, max_length=30)
    assert text_of(served.ok("The house", **parameters)) == expected[0]


def test_a_prefix_in_the_text_is_enough(prefixed: Path, serve: Serve) -> None:
    served = serve(prefixed, "translation")
    assert read_by(served, f"{FRENCH}The house") == f"{FRENCH}The house"
    assert read_by(served, f"{FRENCH}The house", tgt_lang="de") == f"{FRENCH}The house"


def test_the_deployments_languages_are_the_default(prefixed: Path, tiny: Tiny, serve: Serve) -> None:
    served = serve(prefixed, "translation", src_lang="en", tgt_lang="fr")
    assert read_by(served, "The house") == f"{FRENCH}The house"
    assert read_by(served, "The house", tgt_lang="de") == f"{GERMAN}The house"
    bare = serve(tiny("t5", "translation"), "translation", tgt_lang="de")
    assert read_by(bare, "The house") == f"{GERMAN}The house"


def test_a_t5_that_says_nothing_gets_the_text_as_it_is(tiny: Tiny, serve: Serve) -> None:
    served = serve(tiny("t5", "translation"), "translation")
    assert read_by(served, "The house") == "The house"
    assert read_by(served, "The house", task_type="translation_en_to_fr") == f"{FRENCH}The house"


def test_a_summary_has_the_models_prefix_and_lengths(prefixed: Path, serve: Serve) -> None:
    served = serve(prefixed, "summarization")
    assert read_by(served, "The house") == "summarize: The house"
    own = {name: value for name, value in T5_TASKS["summarization"].items() if name != "prefix"}
    expected = continuation(prefixed, "summarization", f"summarize: {PROMPTS[2]}", **own)
    assert text_of(served.ok(PROMPTS[2]), "summarization") == expected[0]


@pytest.mark.parametrize(
    ("parameters", "where"),
    [
        ({"tgt_lang": "xx"}, "parameters.tgt_lang"),
        ({"src_lang": "xx", "tgt_lang": "de"}, "parameters.src_lang"),
        ({"src_lang": "en"}, "parameters.tgt_lang"),
        ({"task_type": "translation"}, "parameters.task_type"),
        ({"task_type": "translation_en_to_xx"}, "parameters.tgt_lang"),
    ],
    ids=str,
)
def test_languages_that_t5_does_not_know(parameters: dict[str, Any], where: str, prefixed: Path, serve: Serve) -> None:
    error = serve(prefixed, "translation").refused("The house", **parameters)
    assert (error["code"], error["where"]) == ("invalid_parameter", where)


# -- Marian, BART: languages that are fixed ----------------------------------------------------------------------------


def test_marian_takes_its_own_languages_and_no_others(tiny: Tiny, serve: Serve) -> None:
    served = serve(tiny("marian", "translation"), "translation")
    plainly = served.ok("The house")
    assert served.ok("The house", src_lang="en", tgt_lang="de") == plainly
    assert served.ok("The house", task_type="translation_en_to_de") == plainly
    error = served.refused("The house", tgt_lang="fr")
    assert error["where"] == "parameters.tgt_lang"
    assert "from en to de" in error["message"]
    assert served.refused("The house", task_type="translation_fr_to_de")["where"] == "parameters.src_lang"


def test_bart_cannot_be_told_languages(tiny: Tiny, serve: Serve) -> None:
    error = serve(tiny("bart", "translation"), "translation").refused("The house", tgt_lang="fr")
    assert "fixed languages" in error["message"]


# -- mBART: languages by code ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mbart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random mBART with the 25 languages of the real one."""
    folder = tmp_path_factory.mktemp("mbart") / "model"
    special = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")]
    vocabulary = [*special, *tiny_tokenizers._pieces(), ("<mask>", 0.0)]
    tokenizer = MBartTokenizer(vocab=vocabulary, model_max_length=CONTEXT)
    sizes = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 64))
    }
    config = MBartConfig(
        vocab_size=len(tokenizer),
        d_model=32,
        max_position_embeddings=CONTEXT,
        init_std=0.5,
        **sizes,
        decoder_start_token_id=tokenizer.eos_token_id,
        forced_eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        MBartForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def translated(folder: Path, text: str, src: str, tgt: str) -> str:
    """The reference, by the tokenizer's public attributes."""
    model, tokenizer = plain(folder, "translation")
    tokenizer.src_lang = src
    [sequence] = model.generate(
        **tokenizer(text, return_tensors="pt"),
        forced_bos_token_id=tokenizer.convert_tokens_to_ids(tgt),
        max_new_tokens=12,
    )
    decoded: str = tokenizer.decode(sequence, skip_special_tokens=True)
    return decoded


def test_language_codes_are_forced_and_requests_do_not_mix_them(mbart: Path, serve: Serve) -> None:
    served = serve(mbart, "translation", src_lang="en", tgt_lang="de")
    expected = {
        pair: translated(mbart, PROMPTS[1], *pair)
        for pair in [("en_XX", "de_DE"), ("en_XX", "fr_XX"), ("fr_XX", "de_DE")]
    }
    assert len(set(expected.values())) == 3
    for (src, tgt), text in expected.items():
        assert text_of(served.ok(PROMPTS[1], src_lang=src, tgt_lang=tgt, max_new_tokens=12)) == text
    short = served.ok(PROMPTS[1], task_type="translation_en_to_fr", max_new_tokens=12)
    assert text_of(short) == expected["en_XX", "fr_XX"]
    assert text_of(served.ok(PROMPTS[1], max_new_tokens=12)) == expected["en_XX", "de_DE"]


def test_callers_do_not_get_each_others_languages(mbart: Path, serve: Serve) -> None:
    served = serve(mbart, "translation", src_lang="en", tgt_lang="de")
    task = served.service.task

    def source(code: str) -> str:
        parameters = task.schema.parse_parameters({"src_lang": code})
        [row] = task.encode(PROMPTS[1], parameters, 0)
        token: str = task.tokenizer.convert_ids_to_tokens(row.features["input_ids"][-1])
        return token

    asked = ["en_XX", "fr_XX", "de_DE", "ro_RO"] * 50
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(source, asked)) == asked
    finally:
        sys.setswitchinterval(interval)


def test_a_huge_text_is_refused_or_cut_by_mbart_too(mbart: Path, serve: Serve) -> None:
    served = serve(mbart, "translation", src_lang="en", tgt_lang="de")
    status, answer = served({"inputs": "The house is old. " * 200_000})
    assert (status, answer["error"]["code"], answer["error"]["where"]) == (413, "text_too_long", "inputs[0]")
    whole, cut = (served.ok("The house is old. " * n, truncation=True, max_new_tokens=4) for n in (200_000, 500))
    assert whole == cut


def test_languages_that_mbart_does_not_know(mbart: Path, serve: Serve) -> None:
    served = serve(mbart, "translation", src_lang="en", tgt_lang="de")
    error = served.refused("The house", tgt_lang="tlh")
    assert error["where"] == "parameters.tgt_lang"
    assert "ar_AR" in error["hint"]
    undecided = Served(mbart, "translation", src_lang="en", tgt_lang="de")
    undecided.service.task._default = (None, None)
    assert "has to be told" in undecided.refused("The house")["message"]
    undecided.service.drain(5)


# -- a real model ------------------------------------------------------------------------------------------------------


@pytest.mark.real
def test_a_real_t5_translates_in_every_form(packaged: Packaged, serve: Serve) -> None:
    served = serve(packaged("flan-t5"), "translation")
    german = "Das Haus ist wunderbar."
    for parameters in ({"tgt_lang": "de"}, {"task_type": "translation_en_to_de"}):
        assert text_of(served.ok("The house is wonderful.", **parameters)) == german
    assert served({"input_data": [f"{GERMAN}The house is wonderful."]}) == (200, [german])
    frame = {"input_data": {"input_string": ["The house is wonderful."]}, "parameters": {"tgt_lang": "de"}}
    assert served(frame) == (200, [{"0": german}])
