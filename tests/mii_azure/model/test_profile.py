"""Profiles against what transformers itself says of the same models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig

from mii_azure.errors import TaskUnsupported, UnknownTask
from mii_azure.model.families import all_families, all_tasks, find_task
from mii_azure.model.profile import profile, supported_tasks, task_check, task_options
from mii_azure.model.resolved import Model
from mii_azure.model.safetensors import Weights
from mii_azure.model.source import resolve
from tests.conftest import Packaged, Tiny
from tests.mii_azure.model_folders import BERT, LLAMA, Folder
from tests.tiny_models import FAMILIES, auto_class

EMBED = {"feature-extraction", "sentence-embeddings", "sentence-similarity"}
LABEL = {"text-classification", "text-ranking", "zero-shot-classification"}
FIRST_TASK = [(name, family.tasks[0]) for name, family in FAMILIES.items()]
_AUTO = {
    "encoder": "AutoModelForMaskedLM",
    "decoder": "AutoModelForCausalLM",
    "encoder-decoder": "AutoModelForSeq2SeqLM",
    "speech": "AutoModelForSpeechSeq2Seq",
}


def described(config: dict[str, Any], **settings: Any) -> Model:
    return Model("m", "folder", config, Weights(100, 400, "float32"), settings=settings)


@pytest.mark.parametrize(("family", "task"), FIRST_TASK)
def test_facts_are_those_of_the_loaded_model(tiny: Tiny, family: str, task: str) -> None:
    folder = tiny(family, task)
    facts = profile(resolve(str(folder)))
    model = auto_class(task).from_pretrained(folder)
    # Marian's sinusoidal positions are computed at load; no file holds them.
    computed = ("embed_positions.weight",) if family == "marian" else ()
    held = [parameter for name, parameter in model.named_parameters() if not name.endswith(computed)]
    assert facts.parameters == sum(parameter.numel() for parameter in held)
    assert facts.architecture == type(model).__name__
    assert (facts.family, facts.kind) == (family, FAMILIES[family].kind)
    assert facts.vocab_size == model.get_input_embeddings().num_embeddings
    assert facts.dtype == "float32"
    assert facts.context_length == 128
    task_check(facts, find_task(task))


@pytest.mark.parametrize("family", [name for name, recipe in FAMILIES.items() if recipe.kind == "decoder"])
def test_kv_bytes_are_those_of_a_real_cache(tiny: Tiny, family: str) -> None:
    folder = tiny(family, "text-generation")
    model = auto_class("text-generation").from_pretrained(folder)
    with torch.no_grad():
        cache = model(torch.tensor([[3, 4, 5, 6, 7]]), use_cache=True).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert profile(resolve(str(folder))).kv_bytes_per_token * 5 == held


@pytest.mark.parametrize("family", [name for name, each in all_families().items() if each.kind != "diffusion"])
def test_the_table_of_families_agrees_with_transformers(family: str) -> None:
    known = all_families()[family]
    config = transformers.AutoConfig.for_model(family)
    model = getattr(transformers, _AUTO[known.kind])._model_mapping[type(config)]
    assert known.sdpa == model._supports_sdpa
    assert known.tied == config.tie_word_embeddings
    facts = profile(described(config.to_dict() | {"architectures": [model.__name__]}))
    text = config if known.kind == "encoder-decoder" else config.get_text_config()  # a wrapper's numbers are its text's
    heads = text.num_attention_heads
    assert (facts.hidden_size, facts.heads, facts.vocab_size) == (text.hidden_size, heads, text.vocab_size)
    first = text.per_layer_config[0]  # layers may differ in the numbers that follow
    assert facts.kv_heads == getattr(first, "num_key_value_heads", heads)
    assert facts.head_dim == (getattr(first, "head_dim", None) or getattr(text, "d_kv", text.hidden_size // heads))


@pytest.mark.parametrize("family", [name for name, family in all_families().items() if family.kind == "encoder"])
def test_a_full_context_runs(family: str) -> None:
    """The context length of the profile is one the model accepts: position tables keep places for padding."""
    config = transformers.AutoConfig.for_model(family, num_hidden_layers=1, hidden_size=8, num_attention_heads=2)
    config.intermediate_size = 8
    model = transformers.AutoModel.from_config(config).eval()
    facts = profile(described(config.to_dict() | {"architectures": [type(model).__name__]}))
    with torch.no_grad():
        out = model(torch.full((1, facts.context_length), 5))
    assert out.last_hidden_state.shape[1] == facts.context_length


def test_mask_buffers_and_tied_copies_are_no_parameters(folder: Folder) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    path = folder({**BERT, "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}, weights=False)
    held = {
        "transformer.wte.weight": np.ones((30, 8), np.float32),
        "lm_head.weight": np.ones((30, 8), np.float32),
        "transformer.h.0.attn.bias": np.ones((1, 1, 64, 64), np.float32),
        "transformer.h.0.attn.masked_bias": np.ones((), np.float32),
        "transformer.h.0.attn.c_attn.bias": np.ones(24, np.float32),
    }
    save_file(held, path / "model.safetensors")
    assert profile(resolve(str(path))).parameters == 30 * 8 + 24


def test_one_matrix_for_encoder_and_decoder_is_counted_once(folder: Folder) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    path = folder({**BERT, "model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}, weights=False)
    names = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
    save_file({name: np.ones((30, 8), np.float32) for name in names}, path / "model.safetensors")
    assert profile(resolve(str(path))).parameters == 30 * 8
    (path / "config.json").write_text((path / "config.json").read_text()[:-1] + ', "tie_word_embeddings": false}')
    assert profile(resolve(str(path))).parameters == 2 * 30 * 8


def test_an_unknown_family_is_read_under_the_usual_names() -> None:
    facts = profile(described(BERT | {"model_type": "brand-new", "architectures": ["BrandNewForMaskedLM"]}))
    assert (facts.family, facts.kind, facts.layers) == ("brand-new", "encoder", 2)
    decoder = profile(described(BERT | {"model_type": "brand-new", "architectures": ["BrandNewForCausalLM"]}))
    assert (decoder.kind, decoder.kv_bytes_per_token) == ("decoder", 2 * 2 * 2 * 4 * 4)


@pytest.mark.parametrize(("limit", "expected"), [(32, 32), (10**30, 64), (512, 64), ("x", 64), (None, 64)])
def test_the_tokenizer_may_shorten_the_context(limit: object, expected: int) -> None:
    model = described(BERT, **{"tokenizer_config.json": {"model_max_length": limit}})
    assert profile(model).context_length == expected


@pytest.mark.parametrize(
    ("architecture", "kind", "tasks"),
    [
        ("BertForQuestionAnswering", "bert", {"question-answering", *EMBED}),
        ("BertForPreTraining", "bert", {"fill-mask", *EMBED}),
        ("ElectraForPreTraining", "electra", EMBED),
        ("BertModel", "bert", EMBED),
        ("GPT2LMHeadModel", "gpt2", {"text-generation", "conversational", *EMBED}),
        ("GPT2Model", "gpt2", EMBED),
        ("Qwen3ForCausalLM", "qwen3", {"text-generation", "conversational", "text-ranking", *EMBED}),
        ("LlamaForSequenceClassification", "llama", {*LABEL, *EMBED}),
        ("MarianMTModel", "marian", {"translation"}),
        ("T5ForConditionalGeneration", "t5", {"summarization", "translation"}),
        ("T5WithLMHeadModel", "t5", {"summarization", "translation"}),
    ],
)
def test_the_architecture_says_which_tasks(architecture: str, kind: str, tasks: set[str]) -> None:
    config = BERT | {"model_type": kind, "architectures": [architecture]}
    facts = profile(described(config))
    assert set(supported_tasks(facts)) == tasks
    for name, task in all_tasks().items():
        if name in tasks:
            task_check(facts, task)
        else:
            with pytest.raises(TaskUnsupported, match=architecture) as caught:
                task_check(facts, task)
            assert all(other in caught.value.hint for other in tasks)


def test_a_config_without_an_architecture_is_not_guessed_at() -> None:
    facts = profile(described({key: value for key, value in BERT.items() if key != "architectures"}))
    with pytest.raises(TaskUnsupported, match="no architecture"):
        task_check(facts, find_task("fill-mask"))


@pytest.mark.parametrize("name", ["question-anwering", "Fill_Mask", "text2text", ""])
def test_an_unknown_task_offers_the_nearest(name: str) -> None:
    with pytest.raises(UnknownTask) as caught:
        find_task(name)
    assert "text-generation" in caught.value.hint
    if name == "question-anwering":
        assert "Did you mean question-answering?" in caught.value.hint


def test_conversation_needs_a_chat_template(folder: Folder) -> None:
    plain = resolve(str(folder(LLAMA, name="plain")))
    with pytest.raises(TaskUnsupported, match="chat template") as caught:
        task_options(plain, find_task("conversational"))
    assert "text-generation" in caught.value.hint
    inline = {"tokenizer_config.json": {"chat_template": "{{ messages }}"}}
    for name, files in {"inline": inline, "apart": {"chat_template.jinja": "{{ messages }}"}}.items():
        assert task_options(resolve(str(folder(LLAMA, name=name, **files))), find_task("conversational")) == {}


def test_embeddings_without_sentence_transformers_files(folder: Folder) -> None:
    model = resolve(str(folder()))
    assert task_options(model, find_task("sentence-embeddings")) == {"pooling": "mean", "normalize": True}
    assert task_options(model, find_task("feature-extraction")) == {"pooling": "none", "normalize": False}
    decoder = resolve(str(folder(LLAMA, name="decoder")))
    assert task_options(decoder, find_task("sentence-embeddings")) == {"pooling": "lasttoken", "normalize": True}


def test_the_table_of_tasks_is_the_scoring_packages() -> None:
    from scoring.schema.registry import task_schema

    assert {task_schema(name).name for name in all_tasks()} == set(all_tasks())


@pytest.mark.real
def test_a_real_model(packaged: Packaged) -> None:
    folder = packaged("minilm")
    facts = profile(resolve(str(folder)))
    assert (facts.parameters, facts.hidden_size, facts.layers, facts.context_length) == (22_713_216, 384, 6, 512)


def test_numbers_that_a_checkpoint_leaves_to_transformers_are_those_of_its_class() -> None:
    """As google/gemma-3-4b-it: its config has neither heads nor vocabulary, which transformers' class knows."""
    text = {"model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34}
    names = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3"}
    found = profile(described(names | {"text_config": text, "vision_config": {"hidden_size": 1152}}))
    wanted = AutoConfig.for_model("gemma3", text_config=text).get_text_config(decoder=True)
    assert (found.kind, found.estimated) == ("decoder", ())
    assert (found.heads, found.kv_heads) == (wanted.num_attention_heads, wanted.num_key_value_heads)
    assert (found.head_dim, found.vocab_size) == (wanted.head_dim, wanted.vocab_size)
    assert found.context_length == wanted.max_position_embeddings
