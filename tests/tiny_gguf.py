"""Tiny GGUF files of random models by gguf's own writer; K-quants, which it does not make, are random blocks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import quantize
from transformers import PreTrainedTokenizerBase
from transformers.modeling_gguf_pytorch_utils import TensorProcessor, get_gguf_hf_weights_map

from tests import tiny_tokenizers
from tests.tiny_causal import tiny_causal

Parts = Callable[[gguf.GGUFWriter], Iterable[str]]
Kind = gguf.GGMLQuantizationType
CONTEXT = 128
TEMPLATE = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
SIZES = {"hidden_size": 256, "intermediate_size": 256, "max_position_embeddings": CONTEXT, "head_dim": 64}


def tiny_gguf(
    path: Path, family: str = "llama", kind: str = "Q8_0", parts: Parts | None = None, **changes: Any
) -> Path:
    """Write a model of a family, its matrices in `kind`; `changes` are of its configuration.

    `parts` adds metadata and tensors of its own; what it returns are the names of metadata that stay out.
    """
    make = tiny_tokenizers.llama if family == "llama" else tiny_tokenizers.qwen2
    tokenizer = make(CONTEXT)
    model = tiny_causal(family, vocab_size=len(tokenizer), **(SIZES | changes))
    writer = gguf.GGUFWriter(path, family)
    write_settings(writer, model.config, family)
    write_vocabulary(writer, tokenizer, "llama" if family == "llama" else "gpt2")
    write_weights(writer, model, Kind[kind], family)
    for left_out in parts(writer) if parts else ():
        del writer.kv_data[0][left_out]
    finish(writer)
    return path


def finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_settings(writer: gguf.GGUFWriter, config: Any, family: str) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if family != "qwen2":  # whose heads are as wide as the model is
        writer.add_key_length(config.head_dim)
        writer.add_rope_dimension_count(config.head_dim)


def write_vocabulary(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerBase, kind: str) -> None:
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    writer.add_tokenizer_model(kind)
    if kind == "gpt2":
        writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if number in special else 1 for number in range(len(tokens))])
    writer.add_token_scores([-float(number) for number in range(len(tokens))])
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(each) for each in merges])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    if tokenizer.bos_token_id is not None:
        writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_chat_template(TEMPLATE)


def write_weights(writer: gguf.GGUFWriter, model: Any, kind: gguf.GGMLQuantizationType, family: str) -> None:
    names = {theirs: ours for ours, theirs in get_gguf_hf_weights_map(model, TensorProcessor()).items()}
    stored = np.random.default_rng(7)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        if tensor.ndim == 1:
            writer.add_tensor(names[name], tensor.numpy())
            continue
        weight = _interleaved(tensor, name, model.config) if family == "llama" else tensor
        try:
            data = quantize(weight.float().numpy(), kind)
        except NotImplementedError:
            data = _blocks(weight.shape, kind, stored)
        writer.add_tensor(names[name], data, raw_dtype=kind)


def _interleaved(tensor: torch.Tensor, name: str, config: Any) -> torch.Tensor:
    """Queries and keys in the order that llama.cpp's own conversion gives them."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
    if heads is None:
        return tensor
    halves = tensor.view(heads, 2, -1, tensor.shape[1])
    return halves.transpose(1, 2).reshape(tensor.shape)


def _blocks(shape: Any, kind: gguf.GGMLQuantizationType, random: np.random.Generator) -> np.ndarray:
    """Random blocks of a K-quant, whose float16 scales are small."""
    inputs, size = GGML_QUANT_SIZES[kind]
    blocks = random.integers(0, 256, (shape[0], shape[1] // inputs, size), np.uint8)
    at = {"Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (size - 2,), "Q3_K": (size - 2,), "Q2_K": (size - 4, size - 2)}
    for place in at[kind.name]:
        scale = np.full(blocks.shape[:2], 2e-4, np.float16)
        blocks[:, :, place : place + 2] = scale[..., None].view(np.uint8)
    return blocks.reshape(shape[0], -1)
