"""Writes a Llama's weights as a GGUF file, for llama.cpp to be measured beside us."""

from pathlib import Path
from typing import Any

import torch


def write_llama(model: Any, path: Path, kind: str) -> Path:
    """Write a model's weights in one of GGML's formats (norms in float32), with a vocabulary of placeholders."""
    import gguf

    config, stored = model.config, gguf.GGMLQuantizationType[kind]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("llama")
    names = [f"<{number}>".encode() for number in range(config.vocab_size)]
    writer.add_token_list(names)
    writer.add_token_scores([0.0] * len(names))
    writer.add_token_types([int(gguf.TokenType.NORMAL)] * len(names))
    weights, before = dict(model.named_parameters()), dict[Any, Any]()
    for name, tensor in weights.items():
        wanted = gguf.GGMLQuantizationType.F32 if tensor.ndim == 1 else stored
        # Layers that were filled alike, as benchmarks fill them, are rounded once.
        alike = name.split(".")[-2], tensor.shape, tensor.detach().flatten()[:4096].numpy().tobytes()
        if alike not in before:
            turned = _turned(name, tensor, config).detach().float().numpy()
            before[alike] = gguf.quants.quantize(turned, wanted)
        data = before[alike]
        writer.add_tensor(_named(name), data, raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


_PARTS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def _named(name: str) -> str:
    """GGUF's name of a parameter of transformers' Llama."""
    if name.startswith("model.layers."):
        _, _, number, *rest = name.split(".")
        return f"blk.{number}.{_PARTS['.'.join(rest[:-1])]}.weight"
    return {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}[
        name.removesuffix(".weight")
    ] + ".weight"


def _turned(name: str, tensor: Any, config: Any) -> Any:
    """Queries and keys by interleaved pairs, as GGML rotates them."""
    heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
    if "q_proj" not in name and "k_proj" not in name:
        return tensor
    halves: torch.Tensor = tensor.view(heads, 2, -1, tensor.shape[1])
    return halves.transpose(1, 2).reshape(tensor.shape)
