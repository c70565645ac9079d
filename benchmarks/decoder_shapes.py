"""Shapes of decoders that are published, by name, and models of random weights in them."""

from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class Case:
    """One row: a shape, a number of slots, and what to compare with.

    A `big` one builds everything when its turn comes, so that the card holds one of them, and has no compiled option:
    its products read all there is to read already.
    """

    family: str
    config: dict[str, Any] = field(default_factory=dict)
    slots: int = 1
    big: bool = False
    generate_static: bool = False
    int8: bool = False
    dtype: str = "float16"


_LLAMA_1B = {
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
}
_LLAMA_7B = _LLAMA_1B | {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
}
_QWEN3_600M = {
    "vocab_size": 151936, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
    "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True,
}  # fmt: skip
_QWEN3_8B = _QWEN3_600M | {
    "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32,
    "tie_word_embeddings": False,
}  # fmt: skip
_MISTRAL_7B = {
    "vocab_size": 32768, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "sliding_window": None,
}  # fmt: skip
_GEMMA3_4B = {
    "vocab_size": 262208, "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "sliding_window": 1024,
}  # fmt: skip
_GEMMA4_E4B = {  # heads of 256 and, in every sixth layer, of 512; the last 18 layers read what others keep
    "vocab_size": 262144, "vocab_size_per_layer_input": 262144, "hidden_size": 2560, "hidden_size_per_layer_input": 256,
    "intermediate_size": 10240, "num_hidden_layers": 42, "num_attention_heads": 8, "num_key_value_heads": 2,
    "head_dim": 256, "global_head_dim": 512, "num_kv_shared_layers": 18, "sliding_window": 512,
    "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 7,
}  # fmt: skip
_GEMMA4_31B_SMALL = {  # 31B at a tenth of its depth
    "vocab_size": 262144, "hidden_size": 5376, "hidden_size_per_layer_input": 0, "intermediate_size": 21504,
    "num_hidden_layers": 6, "num_attention_heads": 32, "num_key_value_heads": 16, "num_global_key_value_heads": 4,
    "head_dim": 256, "global_head_dim": 512, "num_kv_shared_layers": 0, "sliding_window": 1024,
    "attention_k_eq_v": True, "layer_types": ["sliding_attention"] * 5 + ["full_attention"],
}  # fmt: skip
_PHI4_MINI = {  # with rotary positions that are the same at every length
    "vocab_size": 200064, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32,
    "num_attention_heads": 24, "num_key_value_heads": 8, "partial_rotary_factor": 0.75, "tie_word_embeddings": True,
    "pad_token_id": 0,
}  # fmt: skip
_OLMOE_SMALL = {  # a mixture of experts, which only the generic tier serves, at half its depth
    "vocab_size": 50304, "hidden_size": 2048, "intermediate_size": 1024, "num_hidden_layers": 8,
    "num_attention_heads": 16, "num_key_value_heads": 16, "num_experts": 64, "num_experts_per_tok": 8,
}  # fmt: skip
_QWEN3_MOE_SMALL = {  # Qwen3-30B-A3B at a quarter of its depth
    "vocab_size": 151936, "hidden_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 32,
    "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8,
    "moe_intermediate_size": 768, "norm_topk_prob": True,
}  # fmt: skip
_MIXTRAL_SMALL = _MISTRAL_7B | {"num_hidden_layers": 8, "num_local_experts": 8, "num_experts_per_tok": 2}
# gpt-oss-20b at half its depth, its windows as long as the measured context, since transformers' StaticCache over
# shorter ones has no room for a token past them in a graph.
_GPT_OSS_SMALL = {"num_hidden_layers": 12, "num_local_experts": 32, "sliding_window": 384}
_RECURRENT = {  # as wide as those of about 9 B, few layers, of which three of four are recurrent
    "vocab_size": 32768, "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 8, "pad_token_id": 0,
}  # fmt: skip
_QWEN35_SMALL = _RECURRENT | {
    "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 256, "linear_num_key_heads": 16,
    "linear_num_value_heads": 32, "linear_key_head_dim": 128, "linear_value_head_dim": 128,
}  # fmt: skip
_GRANITE4_SMALL = _RECURRENT | {
    "num_attention_heads": 32, "num_key_value_heads": 8, "mamba_n_heads": 128, "mamba_d_head": 64,
    "mamba_d_state": 128, "mamba_n_groups": 1, "shared_intermediate_size": 12288, "num_local_experts": 0,
    "layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 2,
}  # fmt: skip
_OLMO2_7B = {
    "vocab_size": 100352, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 32,
}  # fmt: skip
_OPT = {
    "hidden_size": 2048,
    "word_embed_proj_dim": 2048,
    "ffn_dim": 8192,
    "num_hidden_layers": 24,
    "num_attention_heads": 32,
}
CASES = {
    "gpt2-124m": Case("gpt2", generate_static=True),
    "bloom-560m": Case(
        "bloom", {"vocab_size": 250880, "hidden_size": 1024, "n_layer": 24, "n_head": 16}, generate_static=True
    ),
    "llama-1.1b": Case("llama", _LLAMA_1B),
    "opt-1.3b": Case("opt", _OPT),
    "llama-1.1b-64": Case("llama", _LLAMA_1B, slots=64),
    "llama-1.1b-256": Case("llama", _LLAMA_1B, slots=256),
    "llama-6.7b": Case("llama", _LLAMA_7B, big=True),
    "llama-6.7b-int8": Case("llama", _LLAMA_7B, big=True, int8=True),
    "qwen3-0.6b": Case("qwen3", _QWEN3_600M, dtype="bfloat16"),
    "qwen3-0.6b-256": Case("qwen3", _QWEN3_600M, slots=256, dtype="bfloat16"),
    "qwen3-8b": Case("qwen3", _QWEN3_8B, big=True, dtype="bfloat16"),
    "mistral-7b": Case("mistral", _MISTRAL_7B, big=True, dtype="bfloat16"),
    "gemma3-4b": Case("gemma3_text", _GEMMA3_4B, big=True, dtype="bfloat16"),
    "gemma4-e4b": Case("gemma4_text", _GEMMA4_E4B, big=True, dtype="bfloat16"),
    "gemma4-e4b-64": Case("gemma4_text", _GEMMA4_E4B, slots=64, big=True, dtype="bfloat16"),
    "gemma4-31b-small": Case("gemma4_text", _GEMMA4_31B_SMALL, big=True, dtype="bfloat16"),
    "qwen3-0.6b-64": Case("qwen3", _QWEN3_600M, slots=64, dtype="bfloat16"),
    "olmoe-small": Case("olmoe", _OLMOE_SMALL, dtype="bfloat16"),
    "qwen3-moe-small": Case("qwen3_moe", _QWEN3_MOE_SMALL, big=True, dtype="bfloat16"),
    "mixtral-small": Case("mixtral", _MIXTRAL_SMALL, big=True, dtype="bfloat16"),
    "gpt-oss-small": Case("gpt_oss", _GPT_OSS_SMALL, big=True, dtype="bfloat16"),
    "qwen3.5-small": Case("qwen3_5_text", _QWEN35_SMALL, dtype="bfloat16"),
    "qwen3.5-small-32": Case("qwen3_5_text", _QWEN35_SMALL, slots=32, dtype="bfloat16"),
    "granite4-small": Case("granitemoehybrid", _GRANITE4_SMALL, dtype="bfloat16"),
    "olmo2-7b": Case("olmo2", _OLMO2_7B, big=True, dtype="bfloat16"),
    "phi4-mini": Case("phi3", _PHI4_MINI, big=True, dtype="bfloat16"),
}


def make(case: Case) -> Any:
    """A model with random weights on the GPU, in the case's type."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(case.family, **case.config)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, case.dtype))
    return model.eval()
