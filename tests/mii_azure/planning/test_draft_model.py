"""Bundles with a draft model: it is shipped, planned for, and drafts; one that cannot is refused by what is wrong."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import transformers

import mii_azure
from mii_azure import errors
from scoring.api.service import Service
from scoring.config import Deployment
from scoring.limits.memory_shares import DRAFT_CACHE_TOKENS
from scoring.model.loader import load_with
from scoring.passes.registry import catalogue
from scoring.schema.registry import task_class
from tests.conftest import Tiny

TASK = "text-generation"
CPU = "Standard_DS3_v2"


@pytest.fixture
def models(tiny: Tiny, tmp_path: Path) -> tuple[Path, Path]:
    """A model, and one of half its layers."""
    base, small = tiny("llama", TASK), tmp_path / "small"
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    model.model.layers = model.model.layers[:1]
    model.config.num_hidden_layers = 1
    model.save_pretrained(small)
    transformers.AutoTokenizer.from_pretrained(base).save_pretrained(small)
    return base, small


def generated(base: Path, output: Path, **options: Any) -> Path:
    return mii_azure.generate(TASK, str(base), "drafted", output=output, instance_type=CPU, **options)


def started(bundle: Path, **limits: Any) -> Service:
    """The bundle's service, with the passes that it starts with."""
    deployment = Deployment.read(bundle / "code" / "deployment.json")
    deployment = replace(deployment, limits=replace(deployment.limits, **limits))
    passes = catalogue(deployment)
    loaded, chosen = load_with(passes, deployment, bundle / "model")
    made = Service(deployment, loaded, task_class(TASK)(loaded, TASK), {})
    made.start(chosen)
    return made


def test_a_bundle_with_a_draft_model_answers_as_without(
    models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scoring.passes.static_decode.cost_of", lambda draft, decoder: 0.1)  # tiny ones cost alike
    base, small = models
    bundle = generated(base, tmp_path / "bundle", draft_model=str(small))
    told = json.loads((bundle / "code" / "deployment.json").read_text())["limits"]
    assert (told["speculation"], told["draft_model"]) == ("auto", "draft_model")
    listed = (bundle / "manifest.json").read_text()
    assert "model/draft_model/model.safetensors" in listed
    plan = (bundle / "plan.md").read_text()
    assert f"a cache of {DRAFT_CACHE_TOKENS:,} tokens" in plan
    assert "| the draft model (forecast) |" in plan
    body = {"max_new_tokens": 30, "ignore_eos": True}
    asks = [
        json.dumps({"inputs": ["one two three", "a king"], "parameters": body | more})
        for more in ({}, {"do_sample": True, "seed": 3, "temperature": 0.8})
    ]
    drafting, plain = started(bundle), started(bundle, speculation="off")
    try:
        for ask in asks:
            assert drafting.answer(ask).body == plain.answer(ask).body
        assert drafting.statistics()["drafted_tokens"] > 0
        assert any("drafted by a draft model" in record["reason"] for record in drafting.metadata()["passes"])
    finally:
        assert drafting.drain(20)
        assert plain.drain(20)


def test_memory_counts_the_draft_model(models: tuple[Path, Path]) -> None:
    base, small = models
    without = mii_azure.plan(TASK, str(base), CPU)
    with_it = mii_azure.plan(TASK, str(base), CPU, draft_model=str(small))
    more = with_it.memory.weights - without.memory.weights
    draft = mii_azure.plan(TASK, str(small), CPU).profile
    assert more == draft.parameters * 4 + draft.kv_bytes_per_token * DRAFT_CACHE_TOKENS


def test_another_vocabulary_is_refused(models: tuple[Path, Path], tmp_path: Path) -> None:
    base, small = models
    path = small / "tokenizer.json"
    told = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = told["model"]["vocab"]
    first, second = list(vocabulary)[5:7]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path.write_text(json.dumps(told), encoding="utf-8")
    with pytest.raises(errors.DraftUnusable, match="another vocabulary: 2 tokens differ") as caught:
        generated(base, tmp_path / "bundle", draft_model=str(small))
    assert "same family" in caught.value.hint
    assert not (tmp_path / "bundle").exists()


def test_what_cannot_draft_is_refused(models: tuple[Path, Path], tiny: Tiny, tmp_path: Path) -> None:
    base, small = models
    encoder, bare = tmp_path / "encoder", tmp_path / "bare"
    shutil.copytree(tiny("bert", "fill-mask"), encoder)
    shutil.copytree(small, bare)
    (bare / "tokenizer.json").unlink()
    shutil.copy(base / "tokenizer.json", encoder / "tokenizer.json")
    for draft, said in ((encoder, "writes no text"), (bare, "cannot be compared"), (tmp_path / "no", "is no folder")):
        with pytest.raises(errors.DraftUnusable, match=said):
            generated(base, tmp_path / "bundle", draft_model=str(draft))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"task": "fill-mask", "draft_model": "x"}, "Only text-generation and conversational are drafted"),
        ({"draft_model": "x", "speculation": "ngram"}, "nothing reads a draft model"),
        ({"draft_model": "x", "speculation": "off"}, "nothing reads a draft model"),
        ({"speculation": "draft"}, "needs a draft_model"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(errors.SpecError, match=said):
        mii_azure.plan(**({"task": TASK, "model": "gpt2"} | options))


def test_several_gpus_take_no_draft_model(models: tuple[Path, Path]) -> None:
    base, small = models
    with pytest.raises(errors.NotAvailable, match="several take no steps with drafts"):
        mii_azure.plan(TASK, str(base), "Standard_NC80adis_H100_v5", tensor_parallel=2, draft_model=str(small))
