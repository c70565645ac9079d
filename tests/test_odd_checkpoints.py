"""Checkpoints as people have them: answered as plain transformers answers them, or refused before a bundle is written.

Old names of tensors, shards, several types in one file, heads that are tied or written twice, tokenizers of which a
file is missing, and generation configs that contradict themselves.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

import mii_azure
from scoring.config import Limits
from scoring.decoder.decoder import Decoder
from tests.conftest import Tiny
from tests.scoring.conftest import Served
from tests.scoring.encoders import TEXTS, assert_agree, oracle
from tests.scoring.generating import PROMPTS, continuation
from tests.scoring.model_files import changed

CLASSIFY, GENERATE = "text-classification", "text-generation"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
NEW = 8
Tensors = dict[str, torch.Tensor]


@pytest.fixture
def serving() -> Iterator[Callable[..., Served]]:
    running: list[Served] = []

    def start(folder: Path, task: str, slots: bool = False) -> Served:
        mii_azure.plan(task, str(folder))
        running.append(Served(folder, task, Limits(max_batch_size=8)))
        if slots:
            running[-1].service.loaded.runtime.decoder = Decoder(running[-1].service.loaded.model, 4, 128)
        return running[-1]

    yield start
    for served in running:
        served.service.drain(5)


def assert_plain(served: Served, folder: Path, task: str) -> None:
    """Answers are those of plain transformers over the folder, each text alone."""
    if task == GENERATE:
        answers = served.ok(list(PROMPTS), max_new_tokens=NEW, return_full_text=False)
        tokens: Any = {"max_new_tokens": NEW, "return_dict_in_generate": False}
        wanted = [continuation(folder, task, text, **tokens)[0] for text in PROMPTS]
        assert [each[0]["generated_text"] for each in answers] == wanted
    else:
        pipe = oracle(folder, task)
        assert_agree(served.ok(TEXTS, top_k=None), [pipe(text, top_k=None) for text in TEXTS])


# -- weights -----------------------------------------------------------------------------------------------------------


def _old_norms(tensors: Tensors) -> Tensors:
    """TensorFlow's names, which the first BERT checkpoints have."""
    ends = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    return {next((n.replace(a, b) for a, b in ends.items() if n.endswith(a)), n): t for n, t in tensors.items()}


def _without_prefix(tensors: Tensors) -> Tensors:
    """Names of the bare model, as the first GPT-2 checkpoints have them."""
    return {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}


def _with_buffers(tensors: Tensors) -> Tensors:
    """Buffers that older versions of the library wrote beside the weights."""
    more = {"bert.embeddings.position_ids": torch.arange(128)[None]}
    causal = torch.ones(128, 128, dtype=torch.uint8).tril()[None, None]
    more |= {"transformer.h.0.attn.bias": causal, "transformer.h.0.attn.masked_bias": torch.tensor(-1e4)}
    first = next(iter(tensors)).split(".")[0]
    return tensors | {name: tensor for name, tensor in more.items() if name.startswith(first)}


def _mixed(tensors: Tensors) -> Tensors:
    kinds = (torch.float32, torch.float16, torch.bfloat16)
    return {name: tensors[name].to(kinds[at % 3]) for at, name in enumerate(sorted(tensors))}


def _head_twice(tensors: Tensors) -> Tensors:
    [embedding] = [tensor for name, tensor in tensors.items() if name.endswith(("wte.weight", "embed_tokens.weight"))]
    return tensors | {"lm_head.weight": embedding.clone()}


#: Of each: the model, and what is made of its tensors.
FORMS: dict[str, tuple[str, str, Callable[[Tensors], Tensors]]] = {
    "old names of norms": ("bert", CLASSIFY, _old_norms),
    "names without a prefix": ("gpt2", GENERATE, _without_prefix),
    "an encoder's buffers": ("bert", CLASSIFY, _with_buffers),
    "a decoder's buffers": ("gpt2", GENERATE, _with_buffers),
    "an encoder of three types": ("roberta", CLASSIFY, _mixed),
    "a decoder of three types": ("qwen2", GENERATE, _mixed),
    "a tied head, written twice": ("qwen2", GENERATE, _head_twice),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shards", [False, True], ids=["one file", "shards"])
def test_weights(form: str, shards: bool, tiny: Tiny, tmp_path: Path, serving: Callable[..., Served]) -> None:
    family, task, make = FORMS[form]
    folder = tmp_path / "model"
    shutil.copytree(tiny(family, task), folder)
    tensors = make(load_file(folder / WEIGHTS))
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    if shards:
        _split(folder, tensors)
    assert_plain(serving(folder, task), folder, task)


def _split(folder: Path, tensors: Tensors) -> None:
    (folder / WEIGHTS).unlink()
    names = sorted(tensors)
    placed = {name: f"model-{at % 3 + 1:05}-of-00003.safetensors" for at, name in enumerate(names)}
    for file in set(placed.values()):
        save_file({name: tensors[name] for name in names if placed[name] == file}, folder / file, {"format": "pt"})
    total = sum(tensor.nbytes for tensor in tensors.values())
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": placed}))


def test_a_head_of_its_own_where_the_config_says_nothing(
    tiny: Tiny, tmp_path: Path, serving: Callable[..., Served]
) -> None:
    folder = changed(tiny("qwen2", GENERATE), tmp_path / "model", "config.json", tie_word_embeddings=False)
    tensors = load_file(folder / WEIGHTS)
    head = torch.randn(tensors["model.embed_tokens.weight"].shape, generator=torch.Generator().manual_seed(5))
    save_file(tensors | {"lm_head.weight": head}, folder / WEIGHTS, {"format": "pt"})
    assert_plain(serving(folder, GENERATE), folder, GENERATE)


# -- tokenizers --------------------------------------------------------------------------------------------------------


def _vocabulary(folder: Path) -> None:
    """The word list alone, as the first BERT checkpoints have it."""
    words = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    (folder / "vocab.txt").write_text("\n".join(sorted(words, key=words.__getitem__)) + "\n", encoding="utf-8")
    _leave_out(folder, "tokenizer.json", "tokenizer_config.json")


def _merges(folder: Path) -> None:
    """Vocabulary and merges, as the first GPT-2 checkpoints have them."""
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    pairs = (pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"])
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(pairs) + "\n", encoding="utf-8")
    _leave_out(folder, "tokenizer.json", "tokenizer_config.json")


def _leave_out(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).unlink()


@pytest.mark.parametrize(
    ("family", "task", "change"),
    [
        ("bert", CLASSIFY, lambda folder: _leave_out(folder, "tokenizer_config.json")),
        ("gpt2", GENERATE, lambda folder: _leave_out(folder, "tokenizer_config.json")),
        ("llama", GENERATE, lambda folder: _leave_out(folder, "tokenizer_config.json")),
        ("bert", CLASSIFY, _vocabulary),
        ("gpt2", GENERATE, _merges),
        ("roberta", CLASSIFY, _merges),
    ],
    ids=["bert, no config", "gpt2, no config", "llama, no config", "vocab.txt", "merges, gpt2", "merges, roberta"],
)
def test_a_tokenizer_of_which_files_are_missing(
    family: str,
    task: str,
    change: Callable[[Path], None],
    tiny: Tiny,
    tmp_path: Path,
    serving: Callable[..., Served],
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny(family, task), folder)
    change(folder)
    assert AutoTokenizer.from_pretrained(folder)(TEXTS[1])["input_ids"]
    assert_plain(serving(folder, task), folder, task)


# -- generation configs ------------------------------------------------------------------------------------------------

#: Settings that contradict themselves, the request, or the model; each is answered as `generate` answers.
SETTINGS: list[dict[str, Any]] = [
    {"do_sample": False, "temperature": 0.3, "top_k": 5, "top_p": 0.5},
    {"do_sample": False, "typical_p": 0.4, "min_p": 0.2},
    {"max_length": 4},
    {"max_length": 4, "max_new_tokens": 2},
    {"max_new_tokens": 1, "min_new_tokens": 6},
    {"min_length": 60, "max_length": 20},
    {"pad_token_id": None},
    {"pad_token_id": -1},
    {"eos_token_id": [3, 3, 5]},
    {"eos_token_id": 90_000},
    {"eos_token_id": None},
    {"bos_token_id": 90_000},
    {"forced_eos_token_id": 7},
    {"forced_bos_token_id": 7},
    {"suppress_tokens": [4, 5, 6], "begin_suppress_tokens": [7, 8]},
    {"bad_words_ids": [[11], [12, 13]]},
    {"repetition_penalty": 1.4, "no_repeat_ngram_size": 2},
    {"renormalize_logits": True, "remove_invalid_values": True},
    {"exponential_decay_length_penalty": [2, 1.5]},
    {"num_beams": 3, "early_stopping": True, "length_penalty": 0.1},
    {"use_cache": False, "return_dict_in_generate": True, "output_scores": True},
    {"chat_format": "chatml", "transformers_version": "4.1.0", "_from_model_config": True, "best_of": 4},
]


@pytest.mark.filterwarnings("ignore:Unfeasible length constraints")
@pytest.mark.parametrize("slots", [True, False], ids=["slots", "generate"])
@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: ", ".join(settings))
def test_a_generation_config(
    settings: dict[str, Any], slots: bool, tiny: Tiny, tmp_path: Path, serving: Callable[..., Served]
) -> None:
    folder = changed(tiny("gpt2", GENERATE), tmp_path / "model", "generation_config.json", **settings)
    assert_plain(serving(folder, GENERATE, slots), folder, GENERATE)
