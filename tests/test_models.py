"""The models that other tests stand on: every tiny family loads and answers, every packaged model is the real thing."""

from __future__ import annotations

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
)

from tests.tiny_models import CONTEXT, FAMILIES, Family, load_tiny, tiny_model

ALL = [(name, task) for name, family in FAMILIES.items() for task in family.tasks]
TEXTS = ("Paris is the capital of France.", "Anna Müller lives in Zürich!", "What? 42 apples (cheap).")

Tiny = Callable[[str, str], Path]
Packaged = Callable[[str], Path]


def _answer(family: Family, task: str, model: Any, inputs: Any) -> torch.Tensor:
    """What the model makes of the inputs: the first output of an encoder, or the tokens it generates."""
    with torch.inference_mode():
        if family.kind == "encoder":
            return torch.as_tensor(model(**inputs)[0])
        return torch.as_tensor(model.generate(**inputs, max_new_tokens=8, do_sample=False))


def _files(folder: Path) -> dict[str, str]:
    return {path.name: sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize(("name", "task"), ALL)
def test_tiny_model_answers_by_its_input(tiny: Tiny, name: str, task: str) -> None:
    family = FAMILIES[name]
    model, tokenizer = load_tiny(tiny(name, task), task)
    answers = [_answer(family, task, model, tokenizer(text, return_tensors="pt")) for text in TEXTS]
    assert all(answer.isfinite().all() for answer in answers)
    tails = [tuple(answer.flatten()[-8:].tolist()) for answer in answers]
    assert len(set(tails)) == len(TEXTS)
    if task == "conversational":
        assert "Hello" in tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}], tokenize=False)


@pytest.mark.parametrize("name", FAMILIES)
def test_tiny_tokenizer_is_the_familys_own(tiny: Tiny, name: str) -> None:
    family = FAMILIES[name]
    folder = tiny(name, family.tasks[0])
    tokenizer, config = AutoTokenizer.from_pretrained(folder), AutoConfig.from_pretrained(folder)
    made = family.tokenizer(CONTEXT)
    assert tokenizer(list(TEXTS))["input_ids"] == made(list(TEXTS))["input_ids"]
    assert len(tokenizer) == config.vocab_size and tokenizer.model_max_length == CONTEXT
    assert tokenizer.unk_token_id not in tokenizer(TEXTS[0], add_special_tokens=False)["input_ids"]
    decoded = tokenizer.decode(tokenizer(TEXTS[1])["input_ids"], skip_special_tokens=True)
    accents = "Anna Müller lives in Zürich!" if "Mü" in decoded else "anna muller lives in zurich!"
    assert decoded.strip() == accents
    assert (tokenizer.pad_token is None) == (name in {"gpt2", "gpt_neo", "gptj", "llama", "mistral", "mixtral", "phi3"})
    masked = {"gemma", "gemma2", "gemma3_text", "bart"}
    assert (tokenizer.mask_token is not None) == (family.kind == "encoder" or name in masked)


@pytest.mark.parametrize(("name", "task"), [("bert", "token-classification"), ("marian", "translation")])
def test_tiny_model_is_the_same_bytes_each_time(tmp_path: Path, name: str, task: str) -> None:
    first, second = (tiny_model(name, task, tmp_path / side) for side in "ab")
    assert _files(first) == _files(second)


def test_tiny_model_names_the_tasks_it_has(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="gpt2 does text-generation, conversational, not fill-mask"):
        tiny_model("gpt2", "fill-mask", tmp_path / "m")
    assert not (tmp_path / "m").exists()


@pytest.mark.real
def test_minilm_knows_which_sentences_are_alike(packaged: Packaged) -> None:
    folder = packaged("minilm")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    texts = [
        "A man is eating food.",
        "A man is eating a piece of bread.",
        "The girl is carrying a baby.",
    ]
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        states = model(**inputs).last_hidden_state
    mask = inputs["attention_mask"].unsqueeze(-1)
    means = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1))
    cosines = (means @ means[0]).tolist()
    assert cosines[1:] == pytest.approx([0.7553, -0.105], abs=1e-3)
    assert json.loads((folder / "1_Pooling/config.json").read_text())["pooling_mode_mean_tokens"] is True


@pytest.mark.real
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_smollm2_knows_the_capital_of_france(packaged: Packaged, dtype: torch.dtype) -> None:
    folder = packaged("smollm2")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    question = {
        "role": "user",
        "content": "What is the capital of France? Answer in one short sentence.",
    }
    inputs = tokenizer.apply_chat_template(
        [question], add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    tokens = model.generate(**inputs, max_new_tokens=20, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert tokenizer.decode(tokens, skip_special_tokens=True) == "The capital of France is Paris."
    assert tokens[-1] == tokenizer.eos_token_id


@pytest.mark.real
def test_flan_t5_translates_to_german(packaged: Packaged) -> None:
    folder = packaged("flan-t5")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is False
    assert not torch.equal(model.lm_head.weight, model.shared.weight)
    inputs = tokenizer("translate English to German: The house is wonderful.", return_tensors="pt")
    tokens = model.generate(**inputs, max_new_tokens=20, do_sample=False)[0]
    assert tokenizer.decode(tokens, skip_special_tokens=True) == "Das Haus ist wunderbar."


@pytest.mark.real
def test_smiles_albert_completes_a_reaction(packaged: Packaged) -> None:
    folder = packaged("smiles-albert")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForMaskedLM.from_pretrained(folder).eval()
    assert tokenizer.tokenize("Cl[nH]%12>>Br") == ["Cl", "[nH]", "%12", ">>", "Br"]
    inputs = tokenizer("CC(=O)Cl.OCC>>CC(=[MASK])OCC", return_tensors="pt")
    (place,) = (inputs["input_ids"][0] == tokenizer.mask_token_id).nonzero()
    with torch.inference_mode():
        logits = model(**inputs).logits[0, place.item()]
    assert tokenizer.decode([logits.argmax().item()]) == "O"
