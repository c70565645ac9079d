"""Batches of mixed lengths as several of like lengths, for encoders that are run as transformers has them.

A call costs some microseconds an operation, whatever its size: rows share one until their padding costs more.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

_CALL = 64  # tokens of padding that cost about what one more call does
_ROWS = ("input_ids", "attention_mask", "token_type_ids")


def by_length(plain: Callable[..., Any]) -> Callable[..., Any]:
    """Forward of an encoder that computes rows of like lengths together, and little of their padding.

    What it does not know is left to `plain`: other inputs, other outputs, padding within a row.
    """

    def forward(input_ids: Tensor | None = None, *given: Any, **named: Any) -> Any:
        if given:
            return plain(input_ids, *given, **named)
        named["input_ids"] = input_ids
        known = {name: value for name, value in named.items() if name in _ROWS and value is not None}
        rest = {name: value for name, value in named.items() if name not in _ROWS}
        mask = known.get("attention_mask")
        asked = any(value is not None and not isinstance(value, bool) for value in rest.values())
        outputs = any(value for name, value in rest.items() if name.startswith("output_"))
        if asked or outputs or input_ids is None or mask is None or mask.dim() != 2:
            return plain(**named)
        groups, at_end = _groups(mask)
        if len(groups) < 2 or rest.get("return_dict") is False:
            return plain(**named)
        found = []
        for rows, length in groups:
            cut = slice(-length, None) if at_end else slice(length)
            found.append(plain(**{name: value[rows, cut] for name, value in known.items()}, **rest))
        return _together(found, groups, input_ids.shape, at_end)

    return forward


def _groups(mask: Tensor) -> tuple[list[tuple[Tensor, int]], bool]:
    """Rows of each call with its length, and if their tokens lie at the end; none where padding lies within rows."""
    lengths = mask.sum(1)
    places = torch.arange(mask.shape[1])
    at_end = bool(mask[:, 0].eq(0).any())
    packed = places >= mask.shape[1] - lengths[:, None] if at_end else places < lengths[:, None]
    if len(mask) < 2 or not torch.equal(packed, mask != 0):
        return [], at_end
    order = lengths.argsort(descending=True, stable=True)
    sizes = lengths[order].tolist()
    return [(order[start:end], max(1, sizes[start])) for start, end in pairwise(_cuts(sizes))], at_end


def _cuts(sizes: Sequence[int]) -> list[int]:
    """Bounds of groups of falling sizes, each with no more padding than a call costs."""
    cuts, padding = [0], 0
    for at, size in enumerate(sizes):
        padding += sizes[cuts[-1]] - size
        if padding > _CALL:
            cuts.append(at)
            padding = 0
    return [*cuts, len(sizes)]


def _together(found: Sequence[Any], groups: Sequence[tuple[Tensor, int]], shape: Sequence[int], at_end: bool) -> Any:
    """Outputs of the groups' rows at the batch's places: vectors of tokens [B, S, H], and what rows have."""
    batch, width = shape
    made = {}
    for name, value in found[0].items():
        if not isinstance(value, Tensor):
            continue
        per_token = value.dim() == 3
        whole = value.new_zeros(batch, *((width,) if per_token else ()), *value.shape[1 + per_token :])
        for output, (rows, length) in zip(found, groups, strict=True):
            if per_token:
                whole[rows, width - length if at_end else 0 : width if at_end else length] = output[name]
            else:
                whole[rows] = output[name]
        made[name] = whole
    return type(found[0])(**made)
