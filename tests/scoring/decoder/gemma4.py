"""Tiny models with the heads of Gemma 4: 256 wide where layers see a window, 512 where they see all."""

from typing import Any

from tests.tiny_causal import tiny_causal

#: As E2B, whose last layers read what earlier ones keep, and as 31B, whose wide heads are fewer.
SIZES: dict[str, dict[str, Any]] = {
    "E2B": {"num_key_value_heads": 1, "num_kv_shared_layers": 2, "use_double_wide_mlp": True},
    "31B": {
        "num_key_value_heads": 2, "num_global_key_value_heads": 1, "num_kv_shared_layers": 0,
        "hidden_size_per_layer_input": 0, "use_double_wide_mlp": False, "attention_k_eq_v": True,
    },
}  # fmt: skip
WINDOW = 70


def gemma4(size: str, **changes: Any) -> Any:
    """Random model of four layers, in float32."""
    heads = {"head_dim": 256, "global_head_dim": 512, "sliding_window": WINDOW, "max_position_embeddings": 1024}
    layers = {"num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2}
    return tiny_causal("gemma4_text", **(heads | layers | SIZES[size] | changes))
