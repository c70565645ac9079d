"""Layout of int8 weights in a model folder: compressed-tensors' own, described without torch.

A product's int8 weight [N, K] is `X.weight_packed`, int32 [N, K/4]: four numbers in each, plus 128, the first lowest.
`X.weight_scale` [N, 1] is float32, `X.weight_shape` N and K; row n is what it holds times its scale. Other servers read
int8 weights beside 16-bit activations in this layout.
"""

from pathlib import Path
from typing import Any

from scoring.errors import LoadError
from scoring.strict_json.files import read_object

METHOD, FORMAT = "compressed-tensors", "pack-quantized"
WEIGHT, PACKED, SCALE, SHAPE = ".weight", ".weight_packed", ".weight_scale", ".weight_shape"


def quantization_of(folder: Path) -> dict[str, Any]:
    """The `quantization_config` in a folder's config.json; empty without one, or without a config."""
    try:
        told = read_object(folder / "config.json").get("quantization_config")
    except LoadError:
        return {}
    return told if isinstance(told, dict) else {}


def config_of() -> dict[str, Any]:
    """The `quantization_config` of a folder with int8 weights, without its `ignore`."""
    weights = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False}
    group = {"targets": ["Linear"], "weights": weights, "format": FORMAT}
    return {
        "quant_method": METHOD,
        "format": FORMAT,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
    }
