"""Widens weights of published checkpoints: exact products of stored number and scale, rounded once to the served type.

Every form becomes a `Grid`: numbers [N, K] whose blocks share a scale. Only what is read at a time is widened in
float32. The layouts are told in `methods` and `compressed_groups`.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from scoring.errors import WeightsUnreadable
from scoring.quantization.headers import Packed

_AT_ONCE = 1 << 22  # numbers widened at once, which bounds the float32 copies
_FOURS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # of float4 (e2m1); the sign is the highest bit
_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # places of eight outputs in a word

Parts = Mapping[str, Tensor]  # by role, all on one device


@dataclass
class Grid:
    """Numbers [N, K] of any type, less `zero`, times their scale; both are [ceil(N / rows), ceil(K / columns)].

    `order` [K], if there is one, tells the column of scales of each input.
    """

    values: Tensor
    scale: Tensor
    block: tuple[int, int]
    zero: Tensor | None = None
    order: Tensor | None = None

    def widen(self, dtype: torch.dtype) -> Tensor:
        """The weight [N, K] in `dtype`, on its device."""
        wide = torch.empty(self.values.shape, dtype=dtype, device=self.values.device)
        count = max(1, _AT_ONCE // max(1, self.values.shape[1]))
        for start in range(0, len(wide), count):
            rows = slice(start, start + count)
            numbers = self.values[rows].float()
            if self.zero is not None:
                numbers -= self._spread(self.zero, rows, len(numbers))
            wide[rows] = numbers.mul_(self._spread(self.scale, rows, len(numbers)))
        return wide

    def _spread(self, scale: Tensor, rows: slice, count: int) -> Tensor:
        """One number for each of the weight's rows, and of its columns if they differ, in float32."""
        if self.block[0] > 1:
            scale = scale[torch.arange(rows.start, rows.start + count, device=scale.device) // self.block[0]].float()
        else:
            scale = scale[rows].float()
        if scale.shape[1] == 1:
            return scale
        if self.order is not None:
            return scale[:, self.order]
        return scale.repeat_interleave(self.block[1], 1)[:, : self.values.shape[1]]


def widen(weight: Packed, parts: Parts, dtype: torch.dtype) -> Tensor:
    """Widen a weight on the device of its parts; raises WeightsUnreadable for parts that do not fit together."""
    if weight.form == "bnb4":
        return _bnb4(weight, parts).to(dtype)
    wide: Tensor = grid(weight, parts).widen(dtype)
    if weight.form != "experts":
        return wide
    experts, inputs, outputs = weight.shape
    return wide.view(experts, outputs, inputs).transpose(1, 2).contiguous()


def grid(weight: Packed, parts: Parts) -> Grid:
    """A weight as numbers and scales; raises WeightsUnreadable as `widen`."""
    found = _FORMS[weight.form](weight, parts)
    if found.order is not None and (found.order.min() < 0 or found.order.max() >= found.scale.shape[1]):
        raise WeightsUnreadable(f"The order of inputs of {weight.name} names a group that it has not.", _AGAIN)
    return found


_AGAIN = "Copy the weights again, all files from one place."


def unpack(words: Tensor, bits: int) -> Tensor:
    """Unpack int32 [R, C] to uint8 [R, C 32 / bits], the lowest number of a word first."""
    octets = words.contiguous().view(torch.uint8)
    if bits == 8:
        return octets
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=words.device)
    numbers: Tensor = (octets[..., None] >> shifts) & (2**bits - 1)
    return numbers.view(len(words), -1)


def _matrix(scale: Tensor) -> Tensor:
    return scale if scale.ndim == 2 else scale.reshape(-1, 1)


def _order(parts: Parts) -> Tensor | None:
    return parts["order"].long() if "order" in parts else None


def _packed(weight: Packed, parts: Parts) -> Grid:
    rows, columns = map(int, parts["shape"].tolist())
    if rows != weight.shape[0] or not weight.shape[1] - 32 // weight.bits < columns <= weight.shape[1]:
        raise WeightsUnreadable(
            f"{weight.parts['shape']} says {[rows, columns]}, and the packed weight is {list(weight.shape)}.", _AGAIN
        )
    half = 2 ** (weight.bits - 1)
    zero = torch.full((1, 1), half, device=parts["values"].device).expand(parts["scale"].shape)
    if "zero" in parts:
        zero = unpack(parts["zero"].t(), weight.bits)[:, :rows].t()
    values = unpack(parts["values"], weight.bits)[:, :columns]
    block = (weight.block[0], min(weight.block[1], columns))
    return Grid(values, _matrix(parts["scale"]), block, _matrix(zero), _order(parts))


def _bytes(weight: Packed, parts: Parts) -> Grid:
    zero = _matrix(parts["zero"]) if "zero" in parts else None
    return Grid(parts["values"], _matrix(parts["scale"]), weight.block, zero, _order(parts))


def _awq(weight: Packed, parts: Parts) -> Grid:
    def ordered(words: Tensor) -> Tensor:
        numbers = unpack(words, 4).view(len(words), -1, 8)
        return numbers[:, :, list(_AWQ_ORDER)].reshape(len(words), -1).t()

    return Grid(ordered(parts["values"]), parts["scale"].t(), weight.block, ordered(parts["zero"]))


def _gptq(weight: Packed, parts: Parts, more: int = 1) -> Grid:
    bits = weight.bits
    zero = (unpack(parts["zero"], bits)[:, : weight.shape[0]] + more) & (2**bits - 1)
    values = unpack(parts["values"].t(), bits)
    return Grid(values, parts["scale"].t(), weight.block, zero.t(), _order(parts))


def _gptq_v2(weight: Packed, parts: Parts) -> Grid:
    return _gptq(weight, parts, 0)


def _float(weight: Packed, parts: Parts) -> Grid:
    scale = parts["scale"]
    if scale.dtype == torch.uint8:  # exponents plus 127
        scale = _exponents(scale)
    return Grid(parts["values"], _matrix(scale), weight.block)


def _exponents(stored: Tensor) -> Tensor:
    return torch.ldexp(torch.ones(stored.shape, device=stored.device), stored.int() - 127)


def _fours(octets: Tensor) -> Tensor:
    """Unpack uint8 [R, C] to float4 as float8 [R, 2 C], which holds them all; the lower half of a byte first."""
    table = torch.tensor([*_FOURS, *[-each for each in _FOURS]], device=octets.device).to(torch.float8_e4m3fn)
    numbers = torch.stack((octets & 15, octets >> 4), -1).view(len(octets), -1)
    return table.view(torch.uint8)[numbers.int()].view(torch.float8_e4m3fn)


def _fp4(weight: Packed, parts: Parts) -> Grid:
    scale = _exponents(parts["scale"]) if parts["scale"].dtype == torch.uint8 else parts["scale"].float()
    if "divisor" in parts:
        scale = scale / parts["divisor"].float().reshape(())
    return Grid(_fours(parts["values"]), scale, weight.block)


def _experts(weight: Packed, parts: Parts) -> Grid:
    blocks = parts["values"].shape[2]
    return Grid(_fours(parts["values"].reshape(-1, 16 * blocks)), _exponents(parts["scale"].view(-1, blocks)), (1, 32))


def _bnb8(weight: Packed, parts: Parts) -> Grid:
    return Grid(parts["values"], parts["scale"].reshape(-1, 1) / 127, weight.block)


def _bnb4(weight: Packed, parts: Parts) -> Tensor:
    """The weight in float32 of a form whose blocks cross rows; the higher half of a byte first."""
    try:
        told = json.loads(bytes(parts["state"].cpu().tolist()))
        size, shape = int(told["blocksize"]), [int(each) for each in told["shape"]]
        absmax = parts["scale"].float()
        if "nested_map" in parts:
            outer = parts["nested_scale"].repeat_interleave(int(told["nested_blocksize"]))[: len(absmax)]
            absmax = parts["nested_map"][parts["scale"].int()] * outer + float(told["nested_offset"])
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsUnreadable(f"{weight.parts['state']} is no description of {weight.name}.", _AGAIN) from error
    octets = parts["values"].view(-1)
    wide = torch.empty(2 * len(octets), device=octets.device)
    wide[0::2] = parts["map"][(octets >> 4).int()]
    wide[1::2] = parts["map"][(octets & 15).int()]
    count = torch.Size(shape).numel()
    if size < 1 or -(-count // size) != len(absmax) or not count <= len(wide) <= count + 1:
        raise WeightsUnreadable(f"{weight.name} has {len(absmax)} scales, which its shape {shape} has not.", _AGAIN)
    for start in range(0, len(absmax), _AT_ONCE // size):
        some = slice(start, start + _AT_ONCE // size)
        wide[some.start * size : some.stop * size] *= absmax[some].repeat_interleave(size)[
            : len(wide) - some.start * size
        ]
    return wide[:count].view(shape)


_FORMS: dict[str, Callable[[Packed, Parts], Grid]] = {
    "awq": _awq,
    "bytes": _bytes,
    "bnb8": _bnb8,
    "experts": _experts,
    "float": _float,
    "fp4": _fp4,
    "gptq": _gptq,
    "gptq_v2": _gptq_v2,
    "packed": _packed,
}
