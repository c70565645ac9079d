"""Facts of a model on which the passes decide."""

from typing import Any

from scoring.passes.base import Facts
from scoring.quantization.recognised import kind_of


def facts_of(model: Any, generative: bool) -> Facts:
    """Read from a transformers model and its config, whose attribute map gives every family the same names."""
    config = model.config.get_text_config()
    heads = int(getattr(config, "num_attention_heads", 0) or 0)
    hears = getattr(model, "main_input_name", "") == "input_features"
    kind = getattr(model, "kind", "") or ("speech" if hears else _kind(model.config, generative))
    return Facts(
        family=model.config.model_type,
        architecture=type(model).__name__,
        kind=kind,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        weight_bytes=sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()),
        layers=int(getattr(config, "num_hidden_layers", 0) or 0),
        heads=heads,
        kv_heads=_most(config, "num_key_value_heads") or heads,
        hidden_size=int(getattr(config, "hidden_size", 0) or 0),
        shipped=kind_of(getattr(model.config, "quantization_config", None) or {}),
        head_width=_most(config, "head_dim") if kind == "decoder" else 0,
    )


def _most(config: Any, name: str) -> int:
    """Largest value of a number that layers may differ in; 0 without it."""
    try:
        return int(getattr(config, name, 0) or 0)
    except RuntimeError:  # what transformers raises where they do
        return max(int(getattr(layer, name, 0) or 0) for layer in config.per_layer_config)


def _kind(config: Any, generative: bool) -> str:
    if config.is_encoder_decoder:
        return "encoder-decoder"
    return "decoder" if generative else "encoder"
