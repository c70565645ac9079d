"""Order and values of GGUF's tensors, as llama.cpp changes them, brought back to transformers'."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mii_azure.model.gguf_architectures import Architecture


def in_order(found: Architecture, config: Mapping[str, Any], name: str, undo: str, weights: Any) -> Any:
    """Numbers of a tensor in transformers' order: by its own undoing, else transformers' of the architecture."""
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS

    if undo == "T" or (undo in ("even", "odd") and weights.ndim == 3):
        return weights.swapaxes(-1, -2)
    if undo in ("even", "odd", "upper", "lower"):
        return weights
    if undo == "one":
        return weights - 1
    if undo == "grouped":
        return _grouped(weights, config)
    if undo in ("decay", "heads", "values", "mixed", "convolved", "columns"):
        return _by_keys(weights, config, undo)
    if not found.undo:
        return weights
    return TENSOR_PROCESSORS[found.undo](config=config).process(weights, name).weights


def _grouped(weights: Any, config: Mapping[str, Any]) -> Any:
    """Falcon's order: of each group its queries, a key and a value, which are stored one kind after another."""
    import numpy as np

    heads, groups = config["num_attention_heads"], config["num_kv_heads"]
    width = weights.shape[0] // (heads + 2 * groups)
    queries, keys, values = np.split(weights, [heads * width, (heads + groups) * width])
    parts = queries.reshape(groups, -1, weights.shape[1]), keys.reshape(groups, width, -1)
    return np.concatenate([*parts, values.reshape(groups, width, -1)], axis=1).reshape(weights.shape)


def _by_keys(weights: Any, config: Mapping[str, Any], undo: str) -> Any:
    """Value heads of linear attention by the key that they share, which are stored in turns of all keys."""
    import numpy as np

    if undo == "columns":
        return _by_keys(weights.T, config, "values").T
    if undo == "decay":
        weights = np.log(-weights)
    width = 1 if undo in ("decay", "heads") else config["linear_value_head_dim"]
    keys = config["linear_num_key_heads"]
    start = 2 * keys * config["linear_key_head_dim"] if undo in ("mixed", "convolved") else 0
    values = weights[start:]
    turned = values.reshape(-1, keys, width, *values.shape[1:]).swapaxes(0, 1).reshape(values.shape)
    return np.concatenate([weights[:start], turned])
