"""Tiny random models of any causal type of the installed transformers, from its configuration's own defaults.

Every number that makes a model large is made small where the configuration has it; a few types need more than that.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

VOCABULARY, CONTEXT, SEED = 99, 128, 20240607
MOST = 20_000_000  # parameters past which a model is not tiny: its configuration has a number that this module lacks

#: Numbers of a tiny model, by the names that configurations have for them.
SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "n_inner", "dff"), 64),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"), 32),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "seq_length", "max_seq_len"), CONTEXT),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "experts_per_token"), 2),
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": VOCABULARY,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "rotary_dim": 4,
    **dict.fromkeys(("linear_num_key_heads", "linear_num_heads"), 2),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "linear_head_dim"), 8),
    **dict.fromkeys(("mamba_d_state", "ssm_state_size", "state_size", "mamba_head_dim"), 16),
    **dict.fromkeys(("linear_num_value_heads", "mamba_num_heads"), 4),
    "n_groups": 1,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

_MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1}
_FALCON = {"head_dim": None, "num_kv_heads": 2, "new_decoder_architecture": True}
_LINEAR = {"layer_types": ["linear_attention", "full_attention"]}
_CONV = {"layer_types": ["conv", "full_attention"]}
_ZAMBA = {"num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid"] * 2}
_SIX = {"num_hidden_layers": 6, "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2}
_GEMMA4 = _SIX | {"global_head_dim": 16}
_PER_LAYER = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCABULARY}

#: Encoders' types that are decoders if their configurations say so.
_DECODING = ("bert", "bert-generation", "camembert", "data2vec-text", "electra", "ernie", "roberta", "roc_bert")
_DECODING += ("roberta-prelayernorm", "roformer", "xlm-roberta", "xlm-roberta-xl")
_DECODES = {"is_decoder": True}

#: Numbers of a tiny vision tower.
SIGHT: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "embed_dim", "output_channels"), 16),
    **dict.fromkeys(("num_hidden_layers", "depth"), 1),
    **dict.fromkeys(("num_attention_heads", "num_heads"), 2),
    **dict.fromkeys(("intermediate_size", "mlp_dim"), 32),
    "image_size": 28,
    "patch_size": 14,
    "num_channels": 3,
}

#: Numbers of a tiny tower of sound.
SOUND: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "ext_pw_out_channel", "nemo_conv_channels"), 16),
    **dict.fromkeys(("num_hidden_layers", "num_blocks", "encoder_layers", "conf_num_hidden_layers"), 1),
    **dict.fromkeys(("num_attention_heads", "encoder_attention_heads", "conf_num_attention_heads"), 2),
    **dict.fromkeys(("intermediate_size", "encoder_ffn_dim"), 32),
    "vocab_size": VOCABULARY,
}
_TOWERS = {"vision": SIGHT, "audio": SOUND}

#: What a type needs beside; None leaves a number as it is.
OWN: dict[str, dict[str, Any]] = {
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "bamba": _MAMBA | {"attn_layer_indices": [1]},
    "dots1": {"n_shared_experts": 1},
    "falcon": _FALCON,
    "falcon_h1": _MAMBA | {"mamba_d_ssm": 64},
    "gemma3n_text": _SIX
    | _PER_LAYER
    | {"num_kv_shared_layers": 3, "intermediate_size": [64] * 6, "activation_sparsity_pattern": [0.5] * 2 + [0.0] * 4},
    "gemma4_text": _GEMMA4 | _PER_LAYER | {"num_kv_shared_layers": 3, "use_double_wide_mlp": True},
    "gemma4_unified_text": _GEMMA4 | {"num_global_key_value_heads": 1},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 16, "num_heads": 4},
    "granitemoehybrid": _MAMBA | _LINEAR,
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": _LINEAR,
    **dict.fromkeys(("lfm2", "lfm2_moe", "lfm3"), _CONV),
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "prophetnet": {"num_hidden_layers": None, "num_encoder_layers": 2, "num_decoder_layers": 2},
    **dict.fromkeys(_DECODING, _DECODES),
    "reformer": {"is_decoder": True, "axial_pos_embds": False, "attn_layers": ["local", "lsh"], "num_buckets": 4},
    "xmod": {"is_decoder": True, "default_language": "en_XX"},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "xlnet": {"max_position_embeddings": None},
    "xlstm": {"v_head_dim": None, "head_dim": None},
    "zamba": _ZAMBA,
    "zamba2": _ZAMBA,
    "zaya": {"num_experts_per_tok": None},
}


def tiny_config(family: str, **changes: Any) -> Any:
    """Configuration of a tiny model of a type; `changes` come on top."""
    return AutoConfig.for_model(family, **(_sizes(family) | changes))


def tiny_causal(family: str, **changes: Any) -> Any:
    """Random model of a type in evaluation mode, in float32; the same weights each time.

    Raises ValueError for one that is not tiny.
    """
    config = tiny_config(family, **changes)
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(config).parameters())
    if size > MOST:
        raise ValueError(f"{family} has {size} parameters")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 and "norm" in name:
                parameter.data += 0.5 * torch.rand(parameter.shape) - 0.25
            elif parameter.ndim == 2 and not parameter.any():  # a router, whose ties devices would break differently
                parameter.data.normal_(0, 0.3)
    return model


def tiny_multimodal(family: str) -> Any:
    """Random model of a type that also sees images, as `tiny_causal` makes one; its text part differs layer by layer.

    Raises ValueError for one that is not tiny.
    """
    plain = AutoConfig.for_model(family)
    sizes = _sizes(family)
    for key in plain.sub_configs:
        if isinstance(sizes.get(key), dict) and not any(tower in key for tower in _TOWERS):
            sizes[key] |= {"initializer_range": 0.5} | _odd(sizes[key])
    for name in ("image_token_id", "image_token_index", "video_token_id"):
        if hasattr(plain, name):
            sizes[name] = VOCABULARY - 1
    config = AutoConfig.for_model(family, **sizes)
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in AutoModelForImageTextToText.from_config(config).parameters())
    if size > MOST:
        raise ValueError(f"{family} has {size} parameters")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()


def _odd(text: dict[str, Any]) -> dict[str, Any]:
    """Numbers that make a text part's peculiarities count."""
    odd = {"logit_scale": 0.5, "final_logit_softcapping": 5.0}
    return {name: number for name, number in odd.items() if name in text}


def _sizes(family: str) -> dict[str, Any]:
    plain = AutoConfig.for_model(family)
    own = OWN.get(family, {})
    sizes = {name: value for name, value in _known(plain).items() if own.get(name, value) is not None} | own
    if plain.get_text_config(decoder=True) is not plain:
        text = plain.get_text_config(decoder=True)
        key = next((key for key in plain.sub_configs if getattr(plain, key, None) is text), None)
        if key:
            alike = {name: value for name, value in text.to_dict().items() if name != "per_layer_config"}
            sizes[key] = alike | _known(text) | own.get(key, OWN.get(text.model_type, {}))
    return _towers(plain) | {name: value for name, value in sizes.items() if value is not None}


def _towers(plain: Any) -> dict[str, Any]:
    """Numbers of tiny parts that see or hear."""
    found = {}
    for key in plain.sub_configs:
        small = next((small for tower, small in _TOWERS.items() if tower in key), None)
        if small is not None and getattr(plain, key, None) is not None:
            told = getattr(plain, key).to_dict()
            found[key] = told | {name: value for name, value in small.items() if name in told}
    return found


def _known(config: Any) -> dict[str, Any]:
    """Sizes that a configuration has, layer by layer lists cut to the number of layers."""
    told = config.to_dict()
    sizes = {name: value for name, value in SIZES.items() if name in told or _has(config, name)}
    for name in ("layer_types", "mlp_layer_types", "no_rope_layers"):
        if isinstance(told.get(name), list):
            sizes[name] = told[name][:1] + told[name][-1:]
    if isinstance(told.get("sliding_window"), int):
        sizes["sliding_window"] = 16
    if _has(config, "kv_lora_rank"):
        sizes["num_key_value_heads"] = 4  # every head has its own, expanded from what they share
    return sizes


def _has(config: Any, name: str) -> bool:
    try:
        return hasattr(config, name)
    except Exception:  # a number that differs by layer
        return False
