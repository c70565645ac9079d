"""Tiny GGUF files of random models by gguf's own writer, with llama.cpp's names and its changes of the weights.

K-quants, which gguf does not make, are random blocks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gguf
import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES, MODEL_ARCH_NAMES
from gguf.quants import quantize
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerBase

from tests import tiny_tokenizers
from tests.tiny_causal import tiny_causal

Parts = Callable[[gguf.GGUFWriter], Iterable[str]]
Kind = gguf.GGMLQuantizationType
Vocabulary = tuple[PreTrainedTokenizerBase, tuple[str, str]]
CONTEXT = 128
TEMPLATE = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
SIZES: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 256,
    "max_position_embeddings": CONTEXT,
    "head_dim": 64,
}
#: GGUF's names of architectures, where transformers has another.
NAMES = {
    "mixtral": "llama",
    "qwen2_moe": "qwen2moe",
    "qwen3_moe": "qwen3moe",
    "qwen3_5_text": "qwen35",
    "qwen3_5_moe_text": "qwen35moe",
    "gemma3_text": "gemma3",
    "cohere": "command-r",
    "phi": "phi2",
    "gpt_oss": "gpt-oss",
    "granitemoeshared": "granitemoe",
}
#: Types whose weights an architecture of another name has in their own order.
MODELS = {"exaone": "llama"}
_INTERLEAVED = ("llama", "smollm3", "granite", "granitemoe", "arcee")
_LINEAR = ("qwen35", "qwen35moe")
_ONE_MORE = ("gemma", "gemma2", "gemma3", "nemotron", *_LINEAR)
_WIDE = ("ffn_gate_inp.weight", "position_embd.weight", "conv1d.weight", "conv.weight")  # in float32 always
_NORMAL, _UNKNOWN, _CONTROL, _OWN, _BYTE = 1, 2, 3, 4, 6


def tiny_gguf(
    path: Path, family: str = "llama", kind: str = "Q8_0", parts: Parts | None = None, **changes: Any
) -> Path:
    """Write a model of a family, its matrices in `kind`; `changes` are of its configuration.

    `parts` adds metadata and tensors of its own; what it returns are the names of metadata that stay out.
    """
    return write_gguf(path, family, kind, parts, **(SIZES | changes))[0]


def write_gguf(
    path: Path, family: str, kind: str = "F32", parts: Parts | None = None, split: int = 0, **changes: Any
) -> tuple[Path, Any, PreTrainedTokenizerBase]:
    """Write a model as `tiny_gguf` does, as small as `tiny_causal` makes it; file, model and tokenizer.

    With `split` it becomes parts of so many tensors, whose names gguf derives from the path's.
    """
    tokenizer, vocabulary = tokenizer_of(family)
    numbers = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": None}
    model = tiny_causal(MODELS.get(family, family), **({"vocab_size": len(tokenizer)} | numbers | changes))
    writer = written(path, model, NAMES.get(family, family), (tokenizer, vocabulary), kind, split)
    for left_out in parts(writer) if parts else ():
        del writer.kv_data[0][left_out]
    finish(writer)
    return path, model, tokenizer


def written(
    path: Path, model: Any, architecture: str, vocabulary: Vocabulary, kind: str = "F32", split: int = 0
) -> gguf.GGUFWriter:
    """Writer of a model's settings, vocabulary and weights."""
    writer = gguf.GGUFWriter(path, architecture, split_max_tensors=split)
    write_settings(writer, model.config, architecture)
    tokenizer, names = vocabulary
    write_vocabulary(writer, tokenizer, *names)
    write_weights(writer, model, Kind[kind], architecture)
    return writer


def tokenizer_of(family: str) -> Vocabulary:
    """Tokenizer of a family, with GGUF's names of its kind and of the way it splits texts."""
    if family.startswith("gemma"):
        return tiny_tokenizers.gemma(CONTEXT), ("llama", "default")
    if family in ("llama", "mixtral", "phi3"):
        return tiny_tokenizers.llama(CONTEXT), ("llama", "default")
    if family == "gpt2":
        return tiny_tokenizers.gpt2(CONTEXT), ("gpt2", "gpt-2")
    return tiny_tokenizers.qwen2(CONTEXT), ("gpt2", "qwen2")


def finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_settings(writer: gguf.GGUFWriter, config: Any, architecture: str) -> None:
    told = config.to_dict()
    width = told.get("head_dim") or config.hidden_size // config.num_attention_heads
    rotary = told.get("rope_parameters") or {}
    rotary = rotary.get("full_attention", rotary)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    ffn = [told.get(name) for name in ("intermediate_size", "ffn_hidden_size", "n_inner")]
    if architecture != "qwen35moe":
        writer.add_feed_forward_length(next(filter(None, ffn), 4 * config.hidden_size))
    writer.add_head_count(config.num_attention_heads)
    if groups := _groups(config):
        kinds = told["layer_types"] if architecture == "lfm2" else []
        writer.add_head_count_kv([groups if each == "full_attention" else 0 for each in kinds] or groups)
    epsilon = {name: told.get(name) for name in ("layer_norm_epsilon", "norm_epsilon", "layer_norm_eps", "norm_eps")}
    if (rms := told.get("norm_eps" if architecture == "lfm2" else "rms_norm_eps")) is not None:
        writer.add_layer_norm_rms_eps(rms)
    else:
        writer.add_layer_norm_eps(next(each for each in epsilon.values() if each is not None))
    if architecture not in ("falcon", "gpt2", "gemma", "gemma2"):
        writer.add_rope_freq_base(rotary["rope_theta"])
    if told.get("head_dim"):
        writer.add_key_length(width)
        writer.add_value_length(width)
    if "partial_rotary_factor" in rotary or architecture in (*_INTERLEAVED, "phi3"):
        writer.add_rope_dimension_count(int(width * rotary.get("partial_rotary_factor", 1)))
    _write_own(writer, config, architecture, rotary)


def _groups(config: Any) -> int:
    """Heads of keys and values; 0 where a configuration does not have them apart."""
    told = config.to_dict()
    if told.get("multi_query") and not told["new_decoder_architecture"]:
        return 1
    return int(told.get("num_key_value_heads") or told.get("num_kv_heads") or 0)


def _write_own(writer: gguf.GGUFWriter, config: Any, architecture: str, rotary: dict[str, Any]) -> None:
    """What only some architectures have."""
    if architecture in ("command-r", "cohere2"):
        writer.add_logit_scale(config.logit_scale)
        writer.add_rope_scaling_type(gguf.RopeScalingType.NONE)
    if architecture in ("gemma2", "gemma3", "cohere2", "gpt-oss", "exaone4") and config.sliding_window:
        writer.add_sliding_window(config.sliding_window)
    if architecture == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if architecture == "phi3":
        writer.add_rope_scaling_orig_ctx_len(config.original_max_position_embeddings)
        writer.add_sliding_window(config.sliding_window or 0)
        for name in ("long", "short"):
            if f"{name}_factor" in rotary:
                factors = np.array(rotary[f"{name}_factor"], np.float32)
                writer.add_tensor(f"rope_factors_{name}.weight", factors)
    if architecture == "exaone4" and config.sliding_window:
        writer.add_sliding_window_pattern([each == "sliding_attention" for each in config.layer_types])
    if architecture in ("granite", "granitemoe"):
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_logit_scale(config.logits_scaling)
    if rotary.get("rope_type") in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rotary["rope_type"]))
        writer.add_rope_scaling_factor(rotary["factor"])
    if rotary.get("rope_type") == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rotary["original_max_position_embeddings"])
        for key in ("beta_fast", "beta_slow"):
            if key in rotary:
                writer.add_float32(f"{architecture}.rope.scaling.yarn_{key}", rotary[key])
    if architecture in _LINEAR:
        _write_linear(writer, config, rotary)
    if architecture == "lfm2":
        writer.add_shortconv_l_cache(config.conv_L_cache)
    told = config.to_dict()
    if experts := told.get("num_local_experts") or told.get("num_experts"):
        writer.add_expert_count(experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
    if width := told.get("intermediate_size" if architecture == "gpt-oss" else "moe_intermediate_size"):
        writer.add_expert_feed_forward_length(width)
    if width := told.get("shared_expert_intermediate_size") or told.get("shared_intermediate_size"):
        writer.add_expert_shared_feed_forward_length(width)


def _write_linear(writer: gguf.GGUFWriter, config: Any, rotary: dict[str, Any]) -> None:
    writer.add_ssm_conv_kernel(config.linear_conv_kernel_dim)
    writer.add_ssm_state_size(config.linear_key_head_dim)
    writer.add_ssm_group_count(config.linear_num_key_heads)
    writer.add_ssm_time_step_rank(config.linear_num_value_heads)
    writer.add_ssm_inner_size(config.linear_num_value_heads * config.linear_value_head_dim)
    writer.add_full_attention_interval(config.layer_types.index("full_attention") + 1)
    writer.add_rope_dimension_sections([*rotary["mrope_section"], 0])


def write_vocabulary(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerBase, kind: str, split: str) -> None:
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    types = [_CONTROL if number in tokenizer.all_special_ids else _NORMAL for number in range(len(tokens))]
    for number, token in tokenizer.added_tokens_decoder.items():
        types[number] = _CONTROL if token.special else _OWN
    writer.add_tokenizer_model(kind)
    writer.add_tokenizer_pre(split)
    if kind == "llama":
        writer.add_token_scores([-float(number) for number in range(len(tokens))])
        types = [_BYTE if re.fullmatch("<0x..>", each) else own for each, own in zip(tokens, types, strict=True)]
        types[tokens.index("<unk>")] = _UNKNOWN
    else:
        merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
        writer.add_token_merges([" ".join(each) for each in merges])
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    if tokenizer.bos_token_id is not None:
        writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_chat_template(TEMPLATE)


def write_weights(writer: gguf.GGUFWriter, model: Any, kind: gguf.GGMLQuantizationType, architecture: str) -> None:
    arch = next(key for key, name in MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(arch, model.config.num_hidden_layers)
    stored = np.random.default_rng(7)
    for name, tensor in _stacked(_saved(model)).items():
        found = _named(names, name)
        weight = _changed(tensor, name, model.config, architecture).float().contiguous()
        if weight.ndim == 1 or found.endswith((*_WIDE, ".bias")):
            writer.add_tensor(found, weight.numpy())
            continue
        try:
            data = quantize(weight.numpy(), kind)
        except NotImplementedError:
            data = _blocks(weight.shape, kind, stored)
        writer.add_tensor(found, data, raw_dtype=kind)


def _named(names: gguf.TensorNameMap, name: str) -> str:
    """GGUF's name of a tensor."""
    name = name.replace("dt_bias", "dt_proj.bias")
    if whole := names.get_name(name):
        return str(whole)
    stem, _, suffix = name.rpartition(".")
    found = names.get_name(stem)
    assert found, name
    return f"{found}.{suffix}"


def _saved(model: Any) -> dict[str, torch.Tensor]:
    """Weights as a checkpoint has them."""
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        weights: dict[str, torch.Tensor] = load_file(Path(folder) / "model.safetensors")
        return weights


def _stacked(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights with all experts of a layer in one."""
    found: dict[str, Any] = {}
    for name in sorted(weights, key=lambda each: [int(part) if part.isdigit() else -1 for part in each.split(".")]):
        merged = re.sub(r"^model\.(layers\.\d+\.)block_sparse_moe\.experts", r"\1feed_forward.experts", name)
        merged = re.sub(r"experts\.\d+\.|norms\.\d+\.", lambda part: part[0].split(".")[0] + ".", merged)
        found.setdefault(merged, []).append(weights[name])
    joined = {name: torch.stack(each) if len(each) > 1 else each[0] for name, each in found.items()}
    return {part: tensor for name, each in joined.items() for part, tensor in _apart(name, each)}


def _apart(name: str, tensor: torch.Tensor) -> Iterable[tuple[str, torch.Tensor]]:
    """Tensors that one is stored as: the gates of a layer's experts beside what they let through."""
    stem, _, part = name.rpartition(".")
    if part == "sinks" or ".norms." in name:
        yield (f"{name}.weight" if part == "sinks" else name.replace(".norms.", ".")), tensor
    elif part.startswith("down_proj") and stem.endswith("experts"):
        bias = part.endswith("_bias")
        yield f"{stem}.down_proj.{'bias' if bias else 'weight'}", tensor if bias else tensor.transpose(1, 2)
    elif part.startswith("gate_up_proj"):
        kind, turned = ("bias", tensor) if part.endswith("_bias") else ("weight", tensor.transpose(1, 2))
        yield f"{stem}.gate_proj.{kind}", turned[:, ::2]
        yield f"{stem}.up_proj.{kind}", turned[:, 1::2]
    elif stem.endswith("input_linear"):
        layer, _, whose = stem.removesuffix(".input_linear").rpartition(".")
        for kind, half in zip(("gate", "up"), tensor.chunk(2, -2), strict=True):
            yield f"{layer}.mlp.{'shared_expert' if whose == 'shared_mlp' else 'experts'}.{kind}_proj.weight", half
    else:
        yield name, tensor


def _changed(tensor: torch.Tensor, name: str, config: Any, architecture: str) -> torch.Tensor:
    """Weights as llama.cpp's own conversion changes them."""
    part = name.split(".")[-2]
    if architecture in _INTERLEAVED and part in ("q_proj", "k_proj"):
        heads = config.num_attention_heads if part == "q_proj" else config.num_key_value_heads
        return tensor.view(heads, 2, -1, tensor.shape[1]).transpose(1, 2).reshape(tensor.shape)
    if ".linear_attn." in name:
        return _in_turns(tensor, name, config)
    if architecture == "lfm2" and part == "conv" and tensor.ndim == 3:
        return tensor.squeeze(1)
    if architecture in _ONE_MORE and name.endswith("norm.weight"):
        return tensor + 1
    if architecture == "gpt2" and part in ("c_attn", "c_proj", "c_fc") and tensor.ndim == 2:
        return tensor.T
    if part == "query_key_value":
        heads, groups = config.num_attention_heads, _groups(config)
        width, hidden = config.hidden_size // heads, config.hidden_size
        parts = tensor.view(groups, heads // groups + 2, width, hidden)
        kinds = parts[:, :-2], parts[:, [-2]], parts[:, [-1]]
        return torch.cat([each.reshape(-1, hidden) for each in kinds])
    return tensor


def _in_turns(tensor: torch.Tensor, name: str, config: Any) -> torch.Tensor:
    """Linear attention's weights, whose value heads take turns over the keys instead of following each key."""
    part = name.split(".linear_attn.")[1].removesuffix(".weight")
    keys, width, start = config.linear_num_key_heads, config.linear_value_head_dim, 0
    if part == "norm":
        return tensor
    if part == "out_proj":
        return _in_turns(tensor.T, name.replace(part, "in_proj_z"), config).T
    if part in ("in_proj_qkv", "conv1d"):
        tensor, start = tensor.squeeze(1), 2 * keys * config.linear_key_head_dim
    elif part != "in_proj_z":
        tensor, width = -tensor.exp() if part == "A_log" else tensor, 1
    values = tensor[start:]
    turned = values.reshape(keys, -1, width, *values.shape[1:]).transpose(0, 1).reshape(values.shape)
    return torch.cat([tensor[:start], turned])


def _blocks(shape: Any, kind: gguf.GGMLQuantizationType, random: np.random.Generator) -> np.ndarray:
    """Random blocks of a K-quant, whose float16 scales are small."""
    inputs, size = GGML_QUANT_SIZES[kind]
    blocks = random.integers(0, 256, (shape[0], shape[1] // inputs, size), np.uint8)
    at = {"Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (size - 2,), "Q3_K": (size - 2,), "Q2_K": (size - 4, size - 2)}
    for place in at[kind.name]:
        scale = np.full(blocks.shape[:2], 2e-4, np.float16)
        blocks[:, :, place : place + 2] = scale[..., None].view(np.uint8)
    return blocks.reshape(shape[0], -1)
