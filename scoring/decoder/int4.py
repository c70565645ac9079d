"""int4 and int8 weights of a published checkpoint, as kernels read them: the numbers as stored, not rounded again."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from scoring.decoder.model import DecoderModel, Linear, quantize_weights
from scoring.quantization.dequantize import Grid
from scoring.quantization.layout import quantization_of
from scoring.quantization.loading import Checkpoint, Quantised

_GROUPS = (128, 64, 32, 16)  # inputs that share a scale, of which the kernels take any


class Int4(NamedTuple):
    """A weight [N, K]: words int32 [N, K / 8], scale [N, G], zero points uint8 [N, G] unless all are 8."""

    words: Tensor
    scale: Tensor
    zero: Tensor | None


class Int8(NamedTuple):
    """A weight [N, K]: int8, and scale [N] in float32."""

    words: Tensor
    scale: Tensor


def pack(grid: Grid) -> Int4 | None:
    """Lay a weight out for the kernels; None if its groups are not in order or of another size than they read."""
    columns, size = grid.values.shape[1], grid.block[1]
    group = next((each for each in _GROUPS if size % each == 0 and columns % size == 0), 0)
    if not group or grid.block[0] != 1 or grid.zero is None or grid.values.dtype != torch.uint8:
        return None
    if grid.order is not None and not torch.equal(grid.order, torch.arange(columns, device=grid.order.device) // size):
        return None
    scale, zero = (each.expand(len(each), columns // size) for each in (grid.scale, grid.zero))
    scale, zero = (each.repeat_interleave(size // group, 1).contiguous() for each in (scale, zero))
    return Int4(words_of(grid.values, group), scale, None if bool((zero == 8).all()) else zero.to(torch.uint8))


def rows_of(grid: Grid) -> "Int8 | None":
    """int8 numbers with one scale a row; None if a weight's numbers are others."""
    if (
        grid.block[0] != 1
        or grid.scale.shape != (len(grid.values), 1)
        or grid.values.dtype not in (torch.int8, torch.uint8)
    ):
        return None
    middle = 128 if grid.values.dtype == torch.uint8 else 0
    if (grid.zero is None and middle) or (grid.zero is not None and not bool((grid.zero == middle).all())):
        return None
    return Int8((grid.values.int() - middle).to(torch.int8), grid.scale[:, 0].float())


def words_of(numbers: Tensor, group: int) -> Tensor:
    """Pack uint8 [N, K] from 0 to 15 into int32 [N, K / 8]: number j of a group's word i is its input j group/8 + i."""
    parts = numbers.view(len(numbers), -1, 8, group // 8)
    words = torch.zeros_like(parts[:, :, 0], dtype=torch.int32)
    for place in range(8):
        words |= parts[:, :, place].int() << (4 * place)
    return words.view(len(numbers), -1)


def attach(model: DecoderModel, hf_model: Any, rest: bool = False) -> int:
    """Have products read the int4 or int8 weights of the model's folder beside their wide ones; how many do.

    If any does, the `rest` of them read int8 weights, quantised now.

    Raises WeightsUnreadable if the folder has changed since the model was loaded.
    """
    folder = Path(hf_model.name_or_path)
    told = quantization_of(folder)
    stored = Checkpoint(folder, told).quantised(model.device, model.dtype) if told else {}
    modules = {name: each for name, each in hf_model.named_modules() if type(each) is nn.Linear}
    count = 0
    for product in model.products():
        packed = [_read(name, stored, hf_model.base_model_prefix) for name in _inside(product, modules)]
        found = [each for each in packed if each is not None]
        if found and len(found) == len(packed) and sum(len(each.words) for each in found) == len(product.full):
            count += use(product, found)
    if count and rest:
        quantize_weights(model, missing=True)
    return count


def _inside(product: Linear, modules: dict[str, nn.Linear]) -> list[str]:
    """Names of the modules whose weights are rows of a product, in order."""
    start = product.full.data_ptr()
    end = start + product.full.numel() * product.full.element_size()
    inside = {name: each.weight.data_ptr() for name, each in modules.items() if start <= each.weight.data_ptr() < end}
    return sorted(inside, key=inside.__getitem__)


def _read(module: str, stored: dict[str, Quantised], prefix: str) -> Int4 | Int8 | None:
    names = (module, module.removeprefix(f"{prefix}."), f"{prefix}.{module}")
    found = next((stored[f"{name}.weight"] for name in names if f"{name}.weight" in stored), None)
    if found is None or found.weight.kind not in ("int4", "int8"):
        return None
    return pack(found.grid()) if found.weight.kind == "int4" else rows_of(found.grid())


def use(product: Linear, parts: Sequence[Int4 | Int8]) -> bool:
    """Make a product of parts of one kind, int4 with groups of one size; False if they differ in it."""
    if len({(type(each), each.words.shape[1] // each.scale[0].numel()) for each in parts}) != 1:
        return False
    product.wide = product.full
    product.weight = torch.cat([each.words for each in parts])
    product.scale = torch.cat([each.scale for each in parts])
    fours = [each for each in parts if isinstance(each, Int4)]
    if any(each.zero is not None for each in fours):
        eights = torch.full((1, 1), 8, dtype=torch.uint8, device=product.weight.device)
        product.zero = torch.cat(
            [eights.expand(each.scale.shape) if each.zero is None else each.zero for each in fours]
        )
    return True
