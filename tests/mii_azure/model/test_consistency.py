"""What disagrees among tokenizer, config and weights is told when a bundle is planned, and again where it is loaded."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

import mii_azure
from mii_azure.errors import ModelInconsistent
from scoring.config import Deployment
from scoring.errors import WeightsUnreadable
from scoring.model.loader import load
from tests.conftest import Tiny
from tests.scoring.conftest import Served
from tests.scoring.generating import continuation
from tests.scoring.model_files import changed
from tests.tiny_models import FAMILIES

DISAGREEING: list[tuple[str, str, dict[str, Any], str]] = [
    ("bert", "text-classification", {"id2label": {"0": "a", "1": "b"}}, r"classifier.weight has 3 labels, .* 2\."),
    ("bert", "token-classification", {"id2label": {"0": "a"}}, r"classifier.weight has 5 labels, and config.json 1\."),
    ("roberta", "text-classification", {"id2label": None}, r"classifier.out_proj.weight has 3 labels, .* 2\."),
    ("llama", "text-generation", {"vocab_size": 600}, r"embed_tokens.weight has 559 tokens, .* vocab_size is 600\."),
    ("t5", "summarization", {"vocab_size": 40}, r"shared.weight has \d+ tokens, and config.json's vocab_size is 40\."),
]


@pytest.mark.parametrize(("family", "task", "config", "says"), DISAGREEING)
def test_sizes_that_disagree(
    family: str, task: str, config: dict[str, Any], says: str, tiny: Tiny, tmp_path: Path
) -> None:
    folder = changed(tiny(family, task), tmp_path / "model", "config.json", **config, label2id=None)
    with pytest.raises(ModelInconsistent, match=says) as caught:
        mii_azure.plan(task, str(folder))
    assert caught.value.hint
    with pytest.raises(WeightsUnreadable, match=r"(weight|bias) is \[.*\] in the weights, and \[.*\] by config.json"):
        load(Deployment("m", task), folder)


#: Of each kind of name that a family's tensors have: what config.json says, and the tensor or the stack that is named.
SIZES: list[tuple[str, str, dict[str, Any], str]] = [
    (
        "llama",
        "text-generation",
        {"hidden_size": 64},
        r"model.embed_tokens.weight is \[559, 32\], .* hidden_size is 64\.",
    ),
    (
        "llama",
        "text-generation",
        {"num_hidden_layers": 3},
        r"2 layers under model.layers, and config.json tells of 3\.",
    ),
    ("llama", "text-generation", {"num_attention_heads": 8}, r"q_proj.weight is \[32, 32\], .* heads take 64 rows\."),
    ("llama", "text-generation", {"num_key_value_heads": 4}, r"k_proj.weight is \[16, 32\], .* heads take 32 rows\."),
    ("gemma", "text-generation", {"head_dim": 16}, r"_proj.weight is .* heads take"),
    ("qwen3", "text-generation", {"intermediate_size": 96}, r"gate_proj.weight is .* intermediate_size is 96\."),
    ("gpt2", "text-generation", {"n_embd": 64}, r"wte.weight is .* n_embd is 64\."),
    ("gpt2", "text-generation", {"n_layer": 5}, r"2 layers under transformer.h,"),
    (
        "qwen2",
        "text-generation",
        {"num_hidden_layers": 1},
        r"2 layers under model.layers, and config.json tells of 1\.",
    ),
    ("bert", "fill-mask", {"num_hidden_layers": 1}, r"2 layers under bert.encoder.layer, and config.json tells of 1\."),
    (
        "bart",
        "summarization",
        {"encoder_layers": 1},
        r"2 layers under model.encoder.layers, and config.json tells of 1\.",
    ),
    ("gpt2", "text-generation", {"n_positions": 256}, r"wpe.weight is \[128, 32\]"),
    ("opt", "text-generation", {"max_position_embeddings": 64}, r"embed_positions.weight is \[130, 32\]"),
    ("bloom", "text-generation", {"hidden_size": 64}, r"word_embeddings.weight is"),
    ("bert", "fill-mask", {"max_position_embeddings": 512}, r"position_embeddings.weight is \[128, 32\]"),
    ("bert", "fill-mask", {"type_vocab_size": 5}, r"token_type_embeddings.weight is \[2, 32\]"),
    ("bert", "fill-mask", {"intermediate_size": 96}, r"intermediate.dense.weight is"),
    ("distilbert", "fill-mask", {"hidden_dim": 96}, r"lin1.weight is .* hidden_dim is 96\."),
    ("electra", "fill-mask", {"embedding_size": 32}, r"word_embeddings.weight is .* embedding_size is 32\."),
    ("t5", "translation", {"d_ff": 96}, r"wi.weight is .* d_ff is 96\."),
    ("t5", "translation", {"num_decoder_layers": 4}, r"2 layers under decoder.block, and config.json tells of 4\."),
    ("bart", "summarization", {"decoder_ffn_dim": 96}, r"decoder.layers.*fc1.weight is .* decoder_ffn_dim is 96\."),
]


@pytest.mark.parametrize(("family", "task", "config", "says"), SIZES, ids=lambda value: str(value)[:40])
def test_widths_heads_layers_and_positions_that_disagree(
    family: str, task: str, config: dict[str, Any], says: str, tiny: Tiny, tmp_path: Path
) -> None:
    """Told from headers, before a bundle is written, with the name of a tensor."""
    folder = changed(tiny(family, task), tmp_path / "model", "config.json", **config)
    with pytest.raises(ModelInconsistent, match=says):
        mii_azure.plan(task, str(folder))


@pytest.mark.parametrize("family", FAMILIES)
def test_no_family_that_is_tested_disagrees_with_itself(family: str, tiny: Tiny) -> None:
    task = FAMILIES[family].tasks[0]
    assert mii_azure.plan(task, str(tiny(family, task))).profile.layers


@pytest.mark.parametrize(("told", "says"), [("lama", "Did you mean 'llama'"), (None, "Copy config.json again")])
def test_a_type_that_transformers_does_not_have(told: str | None, says: str, tiny: Tiny, tmp_path: Path) -> None:
    folder = changed(tiny("llama", "text-generation"), tmp_path / "model", "config.json", model_type=told)
    with pytest.raises(ModelInconsistent, match=told or "no model_type") as caught:
        mii_azure.plan("text-generation", str(folder))
    assert says in caught.value.hint


@pytest.mark.parametrize(("family", "task"), [("llama", "text-generation"), ("bert", "fill-mask")])
def test_added_tokens_without_an_embedding(family: str, task: str, tiny: Tiny, tmp_path: Path) -> None:
    source, folder = tiny(family, task), tmp_path / "model"
    shutil.copytree(source, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = len(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "<padding>"})
    tokenizer.add_tokens(["<tool>"])
    tokenizer.save_pretrained(folder)
    planned = mii_azure.plan(task, str(folder))
    assert planned.profile.unembedded == (f"<padding> ({rows})", f"<tool> ({rows + 1})")
    [note] = [each for each in planned.decisions if each.what == "tokens without embedding"]
    assert note.value == f"<padding> ({rows}), <tool> ({rows + 1})"
    served = Served(folder, task)
    error = served.refused(["the [MASK]", "a <tool> of the [MASK]"])
    assert (error["code"], error["where"]) == ("invalid_input", "inputs[1]")
    assert f"'<tool>', token {rows + 1}" in error["message"]
    if task == "text-generation":  # padding with a token that has no embedding would fail
        texts = ["Hello there", "Once upon a time"]
        answers = served.ok(texts, max_new_tokens=5, return_full_text=False)
        wanted = [continuation(source, task, text, max_new_tokens=5)[0] for text in texts]
        assert [answer[0]["generated_text"] for answer in answers] == wanted
    served.service.drain(5)


def test_a_whole_model_has_nothing_to_tell(tiny: Tiny) -> None:
    planned = mii_azure.plan("text-generation", str(tiny("gpt2", "text-generation")))
    assert planned.profile.unembedded == ()
