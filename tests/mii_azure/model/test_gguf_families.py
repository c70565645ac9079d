"""GGUF of each architecture, written as llama.cpp's converter does: the model that it came from, to the last number."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from mii_azure.errors import MiiAzureError, NotAvailable
from mii_azure.model.folder import stored_tensors
from mii_azure.model.gguf_architectures import architectures
from mii_azure.model.gguf_conversion import converted
from mii_azure.model.profile import profile
from mii_azure.model.source import resolve
from tests import tiny_tokenizers
from tests.tiny_causal import tiny_causal, tiny_multimodal
from tests.tiny_gguf import NAMES, Kind, finish, write_gguf, written

TEXT = "The river Aare runs through Bern, é 12345\n\n  日本 🙂 e\u0301 don't."
_GEMMA: dict[str, Any] = {"query_pre_attn_scalar": 8}
_LONG: dict[str, Any] = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 32}
_LONG |= {"long_factor": [1.5, 2.5, 3.5, 4.5], "short_factor": [1.0, 1.1, 1.2, 1.3]}
_YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}
_OSS = _YARN | {"rope_theta": 150000.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False}
_LINEAR = {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0}
_NEAR = {"rope_type": "default", "rope_theta": 1e4}
_SCALES = {"attention_multiplier": 0.2, "embedding_multiplier": 3.0, "residual_multiplier": 0.7, "logits_scaling": 2.0}
_SMOLLM3 = {"num_hidden_layers": 4, "no_rope_layers": [1, 1, 1, 0], "layer_types": None}
_FALCON_7B: dict[str, Any] = {"new_decoder_architecture": False, "multi_query": True, "num_kv_heads": None}
_OF_FILES = {"model", "widened", "weight_bytes"}
_SIX: dict[str, Any] = {"num_hidden_layers": 6, "layer_types": None}

_SECTIONS = {"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 0.25}
_SECTIONS |= {"mrope_section": [2, 1, 1], "mrope_interleaved": True}
_QWEN35: dict[str, Any] = {"num_hidden_layers": 4, "layer_types": None, "head_dim": 32, "rope_parameters": _SECTIONS}
_QWEN35 |= {"linear_num_key_heads": 2, "linear_num_value_heads": 6, "linear_key_head_dim": 4}
_QWEN35 |= {"linear_value_head_dim": 8}

FAMILIES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"rope_parameters": _LINEAR}),
    ("mixtral", {}),
    ("smollm3", _SMOLLM3),
    ("granite", _SCALES),
    ("granitemoe", _SCALES),
    ("granitemoeshared", _SCALES | {"shared_intermediate_size": 24}),
    ("arcee", {"rope_parameters": _YARN | {"beta_fast": 16.0, "beta_slow": 2.0}}),
    ("exaone", {}),
    ("exaone4", {"num_hidden_layers": 4, "layer_types": None}),
    ("exaone4", {"sliding_window": None, "layer_types": ["full_attention"] * 2}),
    ("glm4", {"head_dim": 16}),
    ("glm4", {"attention_bias": False}),
    ("gpt_oss", {"head_dim": 16, "intermediate_size": 24, "rope_parameters": _OSS, "sliding_window": 16}),
    ("olmoe", {}),
    ("qwen2", {"rope_parameters": _YARN}),
    ("qwen3", {"head_dim": 16}),
    ("qwen2_moe", {}),
    ("qwen3_moe", {"norm_topk_prob": True}),
    ("gemma", {}),
    ("gemma2", _GEMMA | {"attn_logit_softcapping": 3.0, "final_logit_softcapping": 2.0}),
    ("gemma3_text", _GEMMA | _SIX | {"rope_parameters": {"full_attention": _LINEAR, "sliding_attention": _NEAR}}),
    ("phi3", {}),
    ("phi3", {"rope_parameters": _LONG, "original_max_position_embeddings": 32, "sliding_window": None}),
    ("starcoder2", {"sliding_window": 4096}),
    ("stablelm", {}),
    ("stablelm", {"use_qkv_bias": True, "use_parallel_residual": True}),
    ("stablelm", {"qk_layernorm": True, "use_parallel_residual": True}),
    ("nemotron", {}),
    ("olmo2", {}),
    ("cohere", {"logit_scale": 0.5}),
    ("cohere", {"use_qk_norm": True}),
    ("cohere2", {"num_hidden_layers": 4, "layer_types": None}),
    ("phi", {}),
    ("qwen3_5_text", _QWEN35),
    ("qwen3_5_moe_text", _QWEN35),
    ("lfm2", {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False}),
    ("gpt2", {}),
    ("falcon", _FALCON_7B),
    ("falcon", {}),
]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MII_AZURE_MODEL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


#: Models of images and text, whose text part is one of these types, with what their files say beside it.
_SEEING: dict[str, tuple[str, str, dict[str, Any]]] = {
    "qwen2vl": ("qwen2_5_vl", "qwen2", {}),
    "qwen3vl": ("qwen3_vl", "qwen3", {"n_deepstack_layers": 3}),
    "qwen3vlmoe": ("qwen3_vl_moe", "qwen3_moe", {"n_deepstack_layers": 3}),
}


def test_every_architecture_is_held() -> None:
    assert {NAMES.get(family, family) for family, _ in FAMILIES} | _SEEING.keys() == architectures().keys()


@pytest.mark.parametrize(("family", "changes"), FAMILIES, ids=lambda each: each if isinstance(each, str) else "")
def test_it_is_the_model_that_it_came_from(family: str, changes: dict[str, Any], tmp_path: Path) -> None:
    """Equal settings, tensors, tokens and logits; what is planned is what is written."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    file, original, tokenizer = write_gguf(tmp_path / "tiny.gguf", family, **changes)
    facts, folder = resolve(str(file)), converted(file)
    stored = stored_tensors(folder)
    assert {each.name: each for each in facts.weights.compared}.items() <= stored.items()
    assert facts.weights.bytes == sum(each.bytes for each in stored.values())
    planned, written = (profile(each).model_dump(exclude=_OF_FILES) for each in (facts, resolve(str(folder))))
    assert planned == written
    model, told = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert type(model) is type(original) and not told["missing_keys"] and not told["unexpected_keys"]
    assert _settings(original) == _settings(model)
    tokens = tokenizer(TEXT, return_tensors="pt").input_ids
    assert AutoTokenizer.from_pretrained(folder)(TEXT).input_ids == tokens[0].tolist()
    with torch.no_grad():
        found, wanted = model(tokens).logits, original(tokens).logits
    # A decay is stored as what its exponential is, whose logarithm is off by a bit on some processors.
    assert (
        torch.allclose(found, wanted, atol=1e-5) if "linear_num_value_heads" in changes else torch.equal(found, wanted)
    )


def _settings(model: Any) -> dict[str, Any]:
    """Settings of a configuration that an answer depends on."""
    told = model.config.to_dict()
    for name in ("_name_or_path", "architectures", "dtype", "initializer_range"):
        told.pop(name, None)
    if model.config.model_type == "qwen3_moe":
        told["head_dim"] = told.get("head_dim") or model.config.hidden_size // model.config.num_attention_heads
    if told.get("multi_query") and not told["new_decoder_architecture"]:
        told["num_kv_heads"] = 1  # whatever its configuration says
    return dict(told)


@pytest.mark.parametrize("architecture", _SEEING)
def test_the_text_part_of_a_model_that_sees(architecture: str, tmp_path: Path) -> None:
    """Positions in three sections are plain ones in a text, so that it is the type without eyes."""
    from transformers import AutoModelForCausalLM

    family, text, told = _SEEING[architecture]
    original, tokenizer = tiny_multimodal(family), tiny_tokenizers.qwen2(128)
    original.resize_token_embeddings(len(tokenizer))
    original.model.language_model.rotary_emb.mrope_section = [2, 1, 1]
    config = original.config.get_text_config().to_dict()
    same = {key: config[key] for key in ("rope_parameters", "rms_norm_eps")}
    same |= {"num_experts": 4, "norm_topk_prob": True} if "num_local_experts" in config else {}
    model = tiny_causal(text, vocab_size=len(tokenizer), **same)
    model.model.load_state_dict(original.model.language_model.state_dict())
    model.lm_head.load_state_dict(original.lm_head.state_dict())
    writer = written(tmp_path / "a.gguf", model, architecture, (tokenizer, ("gpt2", "qwen2")))
    writer.add_rope_dimension_sections([2, 1, 1, 0])
    for key, each in told.items():
        writer.add_uint32(f"{architecture}.{key}", each)
    finish(writer)
    found = AutoModelForCausalLM.from_pretrained(converted(tmp_path / "a.gguf"))
    tokens = torch.arange(3, 60)[None]
    with torch.no_grad():
        assert torch.allclose(found(tokens).logits, original(tokens).logits, atol=1e-5)


@pytest.mark.parametrize("family", ["starcoder2", "nemotron", "qwen3_5_text", "qwen3_5_moe_text", "lfm2"])
def test_transformers_reads_the_same_of_the_file(family: str, tmp_path: Path) -> None:
    """So the tests' own writer is right about order; of other architectures transformers drops settings, or all."""
    from transformers import AutoModelForCausalLM

    file, original, _ = write_gguf(tmp_path / "tiny.gguf", family, **dict(FAMILIES)[family])
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name, dtype=torch.float32).state_dict()
    for name, weight in original.state_dict().items():
        assert torch.allclose(theirs[name], weight, atol=1e-6), name


def test_layers_that_guess_further_tokens_stay_out(tmp_path: Path) -> None:
    def parts(writer: gguf.GGUFWriter) -> Iterable[str]:
        writer.kv_data[0].pop("qwen35.block_count")
        writer.add_block_count(5)
        writer.add_nextn_predict_layers(1)
        writer.add_tensor("blk.4.nextn.eh_proj.weight", np.zeros((32, 64), np.float32))
        return []

    file, original, _ = write_gguf(tmp_path / "tiny.gguf", "qwen3_5_text", parts=parts, **_QWEN35)
    facts = resolve(str(file))
    assert facts.config["num_hidden_layers"] == original.config.num_hidden_layers == 4
    assert converted(file).is_dir()


@pytest.mark.parametrize("family", ["qwen2_moe", "mixtral"])
def test_experts_that_are_quantised(family: str, tmp_path: Path) -> None:
    from gguf.quants import dequantize, quantize
    from safetensors import safe_open

    file, original, _ = write_gguf(tmp_path / "tiny.gguf", family, "Q8_0", num_attention_heads=1, head_dim=32)
    weights = original.state_dict()
    down = next(name for name in weights if name.endswith("1.mlp.experts.down_proj"))
    rounded = dequantize(quantize(weights[down].numpy(), Kind.Q8_0), Kind.Q8_0)
    folder = converted(file)
    parts = ("1.block_sparse_moe.experts.3.w2.weight", "1.mlp.experts.3.down_proj.weight")
    with safe_open(folder / "model.safetensors", "pt") as stored:
        (name,) = (each for each in stored_tensors(folder) if each.endswith(parts))
        assert torch.equal(stored.get_tensor(name), torch.from_numpy(rounded[3]).bfloat16())


def test_halves_of_experts_as_they_are_published(tmp_path: Path) -> None:
    """In MXFP4, which bfloat16 holds exactly: gates and what they let through take turns in transformers' columns."""
    from gguf.quants import dequantize
    from safetensors import safe_open

    file, _, _ = write_gguf(tmp_path / "tiny.gguf", "gpt_oss", "MXFP4", intermediate_size=32)
    stored = {each.name: each for each in gguf.GGUFReader(file).tensors}
    gate, up, down = (stored[f"blk.1.ffn_{name}_exps.weight"] for name in ("gate", "up", "down"))
    with safe_open(converted(file) / "model.safetensors", "pt") as found:
        joined = found.get_tensor("model.layers.1.mlp.experts.gate_up_proj")
        second = found.get_tensor("model.layers.1.mlp.experts.down_proj")
    assert joined.dtype == torch.bfloat16 and joined.shape == (4, 32, 64)
    for each, part in ((gate, joined[..., ::2]), (up, joined[..., 1::2]), (down, second)):
        wide = torch.from_numpy(dequantize(each.data, Kind.MXFP4))
        assert torch.equal(wide.transpose(1, 2), part.float())


def _set(**told: Any) -> Callable[[gguf.GGUFWriter], Iterable[str]]:
    def parts(writer: gguf.GGUFWriter) -> Iterable[str]:
        for key, value in told.items():
            add = {float: writer.add_float32, bool: writer.add_bool, list: writer.add_array}.get(type(value))
            writer.kv_data[0].pop(key.replace("__", "."), None)
            (add or writer.add_uint32)(key.replace("__", "."), value)
        return []

    return parts


def _without(*names: str) -> Callable[[gguf.GGUFWriter], Iterable[str]]:
    return lambda _: names


@pytest.mark.parametrize(
    ("family", "parts", "told"),
    [
        ("gemma2", _without("gemma2.attention.sliding_window"), "have no gemma2.attention.sliding_window"),
        ("phi3", _without("phi3.attention.sliding_window"), "have no phi3.attention.sliding_window"),
        ("granite", _without("granite.logit_scale"), "have no granite.logit_scale"),
        ("qwen2", _without("qwen2.attention.layer_norm_rms_epsilon"), "have no qwen2.attention.layer_norm_rms_epsilon"),
        ("phi3", _set(phi3__rope__scaling__type=2), "scales its positions"),
        ("qwen2", _set(qwen2__attention__scale=0.5), "qwen2.attention.scale .0.5., which has no place"),
        ("qwen2", _set(qwen2__attention__causal=False), "is no decoder"),
        ("qwen2", _set(qwen2__attention__head_count=[4, 2]), "head_count is .4, 2."),
        ("qwen2", _set(qwen2__attention__key_length=16), "a head has 16 numbers"),
        ("qwen3", _set(qwen3__attention__value_length=16), "different widths"),
        ("qwen3", _set(qwen3__rope__dimension_count=4), "turns 4 of 8"),
        ("qwen3", _set(qwen3__expert_count=8), "mixture of experts of the architecture 'qwen3'"),
        ("falcon", _set(falcon__tensor_data_layout=1, falcon__alibi=True), "falcon.alibi"),
        ("gemma3_text", _set(gemma3__attention__sliding_window_pattern=[True]), "a pattern of 1 layers"),
        ("gpt_oss", _without("gpt-oss.expert_used_count"), "have no gpt-oss.expert_used_count"),
        ("granitemoe", _without("granitemoe.expert_used_count"), "have no granitemoe.expert_used_count"),
        ("glm4", _set(glm4__rope__dimension_sections=[2, 1, 1, 0]), "glm4.rope.dimension_sections"),
        ("lfm2", _set(lfm2__attention__head_count_kv=2), "do not tell which layers have attention"),
        ("llama", _set(llama__vocab_size=7), "embeddings, .* and says 7"),
    ],
)
def test_a_setting_without_a_place_is_refused(
    family: str, parts: Callable[[gguf.GGUFWriter], Iterable[str]], told: str, tmp_path: Path
) -> None:
    file, _, _ = write_gguf(tmp_path / "tiny.gguf", family, parts=parts)
    with pytest.raises(MiiAzureError, match=told) as caught:
        resolve(str(file))
    assert caught.value.hint


def test_falcon_with_some_keys_for_all_heads_is_refused(tmp_path: Path) -> None:
    file, _, _ = write_gguf(tmp_path / "a.gguf", "falcon", parts=_set(falcon__attention__head_count_kv=2), **_FALCON_7B)
    with pytest.raises(NotAvailable, match=r"falcon.attention.head_count_kv 2; read is 1"):
        resolve(str(file))


@pytest.mark.parametrize(("family", "layers", "told"), [("gemma2", 46, 8), ("gemma3_text", 62, 8), ("gemma2", 2, 4)])
def test_the_largest_gemma_scales_by_its_width(family: str, layers: int, told: int, tmp_path: Path) -> None:
    """GGUF does not carry it: llama.cpp knows it by the number of layers."""
    file, _, _ = write_gguf(
        tmp_path / "a.gguf", family, num_hidden_layers=layers, layer_types=None, head_dim=4, **_GEMMA
    )
    assert resolve(str(file)).config["query_pre_attn_scalar"] == told


def test_a_pattern_of_windows_that_the_file_tells(tmp_path: Path) -> None:
    pattern = _set(gemma3__attention__sliding_window_pattern=[True, True, False] * 2, gemma3__attention__scale=0.25)
    file, _, _ = write_gguf(tmp_path / "a.gguf", "gemma3_text", parts=pattern, **_GEMMA, **_SIX)
    config = resolve(str(file)).config
    assert config["layer_types"] == ["sliding_attention", "sliding_attention", "full_attention"] * 2
    assert config["query_pre_attn_scalar"] == 16
