"""Layout of weights that generation quantises: compressed-tensors' own, described without torch.

A product's int8 weight [N, K] is `X.weight_packed`, int32 [N, K/4]: four numbers in each, plus 128, the first lowest.
`X.weight_scale` [N, 1] is float32, `X.weight_shape` N and K; row n is what it holds times its scale. int4 has eight
numbers in each, plus 8, and a bfloat16 scale for each group of inputs; fp8 is `X.weight` itself, with int8's scales.
Other servers read weights in this layout beside 16-bit activations.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from scoring.errors import LoadError
from scoring.strict_json.files import read_object

METHOD = "compressed-tensors"
#: Kinds of numbers that generation makes.
Made = Literal["int8", "fp8", "int4"]
KINDS: tuple[Made, ...] = ("int8", "fp8", "int4")
_GROUPS = (128, 64, 32)
_OUTPUTS = re.compile(r"(^|\.)(lm_head|embed_out)(\.weight)?$")
WEIGHT, PACKED, SCALE, SHAPE = ".weight", ".weight_packed", ".weight_scale", ".weight_shape"


def quantization_of(folder: Path) -> dict[str, Any]:
    """The `quantization_config` in a folder's config.json; empty without one, or without a config."""
    try:
        told = read_object(folder / "config.json").get("quantization_config")
    except LoadError:
        return {}
    return told if isinstance(told, dict) else {}


def group_for(inputs: Iterable[int]) -> int:
    """Inputs that share a scale in int4: the most that divides those of every product, and 128 if nothing does."""
    every = set(inputs)
    return next((size for size in _GROUPS if all(not each % size for each in every)), _GROUPS[0])


def is_made(kind: Made, product: str, inputs: int, group: int) -> bool:
    """True unless it stays as it is, as in int4 the output matrix and what groups do not divide."""
    return kind != "int4" or (inputs % group == 0 and _OUTPUTS.search(product) is None)


def parts_of(kind: Made, rows: int, columns: int, group: int) -> list[tuple[str, str, tuple[int, ...]]]:
    """Stored tensors of a product [rows, columns]: (ending of its name, safetensors' type, shape)."""
    if kind == "fp8":
        return [(WEIGHT, "F8_E4M3", (rows, columns)), (SCALE, "F32", (rows, 1))]
    shape = (SHAPE, "I64", (2,))
    if kind == "int4":
        return [(PACKED, "I32", (rows, columns // 8)), (SCALE, "BF16", (rows, columns // group)), shape]
    return [(PACKED, "I32", (rows, -(-columns // 4))), (SCALE, "F32", (rows, 1)), shape]


def config_of(kind: Made, group: int) -> dict[str, Any]:
    """The `quantization_config` of a folder, without its `ignore`."""
    form = "float-quantized" if kind == "fp8" else "pack-quantized"
    bits, number = (4, "int") if kind == "int4" else (8, "float" if kind == "fp8" else "int")
    strategy = {"strategy": "group", "group_size": group} if kind == "int4" else {"strategy": "channel"}
    weights = {"num_bits": bits, "type": number, "symmetric": True, **strategy, "dynamic": False}
    return {
        "quant_method": METHOD,
        "format": form,
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "format": form}},
    }
