"""What starts, with every pass of its catalogue, and what is said of what does not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, M2M100Config, NllbTokenizer

import mii_azure
from scoring.api.service import Service
from scoring.config import Deployment, Limits
from scoring.errors import LoadError, MiiAzureError
from scoring.model.loader import load_with
from scoring.passes.registry import catalogue
from scoring.schema.registry import task_class
from tests import tiny_tokenizers
from tests.conftest import Tiny
from tests.scoring.encoders import TEXTS, assert_agree, oracle, random_model
from tests.scoring.generating import continuation
from tests.scoring.model_files import changed
from tests.tiny_models import CONTEXT, auto_class

Start = Callable[..., Service]


@pytest.fixture
def start() -> Any:
    """`start(folder, task, limits=Limits(), **options)` starts a service as `init` does; it ends with the test."""
    made: list[Service] = []

    def begin(folder: Path, task: str, limits: Limits = Limits(), **options: Any) -> Service:  # noqa: B008
        deployment = Deployment("x", task, task_options=options, limits=limits)
        loaded, chosen = load_with(catalogue(deployment), deployment, folder)
        service = Service(deployment, loaded, task_class(task)(loaded, task), {})
        service.start(chosen)
        made.append(service)
        return service

    yield begin
    for service in made:
        service.drain(5)


def ask(service: Service, inputs: Any, **parameters: Any) -> Any:
    reply = service.answer(json.dumps({"inputs": inputs, "parameters": parameters}))
    assert isinstance(reply.body, bytes)
    return json.loads(reply.body)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_classifier_without_a_padding_token_starts(family: str, tiny: Tiny, tmp_path: Path, start: Start) -> None:
    folder = random_model(tiny(family, "text-generation"), "text-classification", tmp_path / "model", num_labels=3)
    service = start(folder, "text-classification")
    pipe = oracle(folder, "text-classification")
    assert_agree(ask(service, TEXTS), [pipe(text)[0] for text in TEXTS])


# -- languages ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nllb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random NLLB: its tokenizer has a source language of its own and no target."""
    folder = tmp_path_factory.mktemp("nllb") / "model"
    vocabulary = {token: number for number, token in enumerate(("<s>", "<pad>", "</s>", "<unk>"))}
    for piece, _ in tiny_tokenizers._pieces():
        vocabulary.setdefault(piece, len(vocabulary))
    codes = ["eng_Latn", "deu_Latn", "fra_Latn", "zho_Hans", "zho_Hant"]
    tokenizer = NllbTokenizer(vocab=vocabulary, merges=[], extra_special_tokens=codes, model_max_length=CONTEXT)
    sizes = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 64))
    }
    config = M2M100Config(vocab_size=len(tokenizer), d_model=32, max_position_embeddings=CONTEXT, init_std=0.5, **sizes)
    config.decoder_start_token_id = tokenizer.eos_token_id
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        auto_class("translation").from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_model_of_many_languages_starts_untold(nllb: Path, start: Start) -> None:
    service = start(nllb, "translation")
    assert "has to be told" in ask(service, "The house")["error"]["message"]
    assert "several languages" in ask(service, "The house", tgt_lang="zho")["error"]["message"]
    wanted = continuation(nllb, "translation", "The house", forced_bos_token_id=_id(nllb, "fra_Latn"), max_new_tokens=8)
    asked = ask(service, "The house", tgt_lang="fra_Latn", max_new_tokens=8)
    assert asked[0]["translation_text"] == wanted[0]


def test_its_bundle_has_a_sample_that_it_answers(nllb: Path, tmp_path: Path, start: Start) -> None:
    bundle = mii_azure.generate("translation", str(nllb), "many", output=tmp_path / "bundle")
    sample = json.loads((bundle / "requests" / "sample.json").read_text(encoding="utf-8"))
    assert sample["parameters"]["tgt_lang"] == "fra_Latn"
    answer = ask(start(nllb, "translation"), sample["inputs"], **sample["parameters"])
    assert answer[0]["translation_text"]
    told = mii_azure.generate("translation", str(nllb), "told", output=tmp_path / "told", tgt_lang="deu_Latn")
    assert "tgt_lang" not in json.loads((told / "requests" / "sample.json").read_text(encoding="utf-8"))["parameters"]


def test_a_deployment_says_its_languages(nllb: Path, start: Start) -> None:
    service = start(nllb, "translation", src_lang="eng_Latn", tgt_lang="deu_Latn")
    told = ask(service, "The house", src_lang="eng_Latn", tgt_lang="deu_Latn", max_new_tokens=8)
    assert ask(service, "The house", max_new_tokens=8) == told


def _id(folder: Path, token: str) -> int:
    return int(AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids(token))


def test_a_deployments_language_that_the_model_does_not_know_is_a_defect(nllb: Path, start: Start) -> None:
    with pytest.raises(LoadError, match="knows no language 'tlh'"):
        start(nllb, "translation", src_lang="eng_Latn", tgt_lang="tlh")


# -- chat templates ----------------------------------------------------------------------------------------------------

_TURNS = "{% for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}"
TEMPLATES = {
    "demands a system message": "{% if messages[0].role != 'system' %}{{ raise_exception('No system message') }}"
    "{% endif %}" + _TURNS,
    "refuses a system message": "{% if messages[0].role == 'system' %}{{ raise_exception('No such role') }}"
    "{% endif %}" + _TURNS,
    "demands turns": "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}{% endfor %}" + _TURNS,
}


@pytest.mark.parametrize("kind", TEMPLATES)
def test_templates_that_want_their_own_order(kind: str, tiny: Tiny, tmp_path: Path, start: Start) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny("qwen2", "conversational"), folder)
    (folder / "chat_template.jinja").write_text(TEMPLATES[kind], encoding="utf-8")
    service = start(folder, "conversational")
    messages = [{"role": "user", "content": "Hi"}]
    if kind == "demands a system message":
        messages.insert(0, {"role": "system", "content": "Be kind."})
    answer = ask(service, messages, max_new_tokens=2)
    assert answer[0]["generated_text"][-1]["role"] == "assistant"


def test_a_template_that_refuses_everything_is_said_to(tiny: Tiny, tmp_path: Path, start: Start) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny("qwen2", "conversational"), folder)
    (folder / "chat_template.jinja").write_text("{{ raise_exception('Never') }}", encoding="utf-8")
    with pytest.raises(LoadError, match="refuses the messages: Never") as refused:
        start(folder, "conversational")
    assert "context length" not in refused.value.hint


# -- generation configs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["text-generation", "translation"])
def test_stop_strings_of_the_model(task: str, tiny: Tiny, tmp_path: Path, start: Start) -> None:
    source = tiny("llama" if task == "text-generation" else "t5", task)
    texts = ["Hello there, how are you?", "12", "Once upon a time there was a king."]
    free = continuation(source, task, texts[0], max_new_tokens=16)[0]
    stop = free[len(free) // 2 :][:2]
    folder = changed(source, tmp_path / "model", "generation_config.json", stop_strings=[stop])
    service = start(folder, task)
    answers = ask(service, texts, max_new_tokens=16)
    for text, answer in zip(texts, answers, strict=True):
        wanted = continuation(folder, task, text, max_new_tokens=16)[0]
        [made] = answer if isinstance(answer, list) else [answer]
        assert next(iter(made.values())).removeprefix(text if task == "text-generation" else "") == wanted
    assert service.task.company.mates == "any"


# -- tiny contexts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "task", "length"),
    [
        ("bert", "text-classification", 4),
        ("bert", "fill-mask", 4),
        ("bert", "token-classification", 4),
        ("bert", "question-answering", 12),
        ("bert", "sentence-embeddings", 3),
        ("gpt2", "text-generation", 4),
        ("t5", "summarization", 8),
        ("qwen2", "conversational", 24),
    ],
)
def test_a_tiny_context_starts(family: str, task: str, length: int, tiny: Tiny, start: Start) -> None:
    service = start(tiny(family, task), task, Limits(context_length=length))
    assert service.ready


def test_a_context_too_short_for_anything_is_said_to_be(tiny: Tiny, start: Start) -> None:
    with pytest.raises(LoadError, match="tokens; the model takes 2") as refused:
        start(tiny("qwen2", "conversational"), "conversational", Limits(context_length=2))
    assert "context length that it was trained for" in refused.value.hint


def test_few_positions_are_verified_on_what_fits_them(tiny: Tiny, tmp_path: Path, start: Start) -> None:
    folder = random_model(
        tiny("bert", "text-classification"),
        "text-classification",
        tmp_path / "model",
        max_position_embeddings=8,
    )
    service = start(folder, "text-classification")
    assert not any("failed" in record.reason for record in service.records)
    assert_agree(ask(service, "a b"), oracle(folder, "text-classification")("a b"))


def test_a_model_that_fails_is_told_in_a_sentence(tiny: Tiny, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import BertForSequenceClassification

    def broken(self: Any, input_ids: Any = None, attention_mask: Any = None) -> Any:
        raise ValueError("these weights do not multiply\nmore lines")

    monkeypatch.setattr(BertForSequenceClassification, "forward", broken)
    with pytest.raises(MiiAzureError, match="ValueError: these weights do not multiply"):
        start(tiny("bert", "text-classification"), "text-classification")
