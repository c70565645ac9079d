"""Layouts of compressed-tensors: which stored tensors make up a weight, by the group of its module. Without torch.

Beside `X.weight_packed`, or `X.weight` in a narrow type, is `X.weight_scale`: of the tensor, of rows [N, 1], of groups
of inputs [N, G], or of blocks. Integers are packed into int32 with half their range added, the first lowest; numbers of
4 bits into uint8, two a byte. Zero points of packed integers are packed along the outputs.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from scoring.quantization.headers import FLOATS, FP8, INTEGERS, SCALES, Packed, Tensors, number, variant

_METHOD = "compressed-tensors"
_PACKED, _BYTES, _FLOAT = "pack-quantized", ("int-quantized", "naive-quantized"), "float-quantized"
_FOURS = ("nvfp4-pack-quantized", "mxfp4-pack-quantized")
#: Formats that are read.
READ = (_PACKED, *_BYTES, _FLOAT, *_FOURS)

Group = Mapping[str, Any]


def weights_of(told: Mapping[str, Any], tensors: Tensors) -> Iterable[Packed]:
    """Find the weights; raises Unrecognised for a format that is not read, and for parts that do not fit together."""
    if (sparsity := _inner(told, "sparsity_config").get("format", "dense")) != "dense":
        raise variant(_METHOD, "sparsity", sparsity, ["dense"])
    if _inner(told, "transform_config").get("config_groups"):
        raise variant(_METHOD, "transforms", "of activations", ["none"])
    groups = _groups(told)
    for owner, name in tensors.ending(".weight_packed"):
        group = _group_of(owner, groups)
        yield _fours(owner, name, group, tensors) if _format(group) in _FOURS else _packed(owner, name, group, tensors)
    for owner, name in tensors.ending(".weight", dtypes=("I8", *FP8)):
        yield _narrow(owner, name, _group_of(owner, groups), tensors)


def kind_of(told: Mapping[str, Any]) -> str:
    """Numbers of the weights of most modules' group; raises Unrecognised as `weights_of`."""
    group = _group_of("", _groups(told))
    bits = number(group["weights"], "num_bits", usual=8)
    return f"fp{bits}" if group["weights"].get("type") == "float" else f"int{bits}"


def _inner(told: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = told.get(name)
    return found if isinstance(found, Mapping) else {}


def _groups(told: Mapping[str, Any]) -> list[Group]:
    """Groups of a config, each with its format; raises Unrecognised for one that is not read."""
    listed = told.get("config_groups")
    values = list(listed.values()) if isinstance(listed, Mapping) else []
    usual = str(told.get("format") or "unnamed")
    if usual not in (*READ, "mixed-precision"):
        raise variant(_METHOD, "the format", usual, READ)
    groups: list[Group] = []
    for value in values:
        if not isinstance(value, Mapping) or not isinstance(value.get("weights"), Mapping):
            continue  # a group of activations alone
        own = str(value.get("format") or usual)
        if own not in READ:
            raise variant(_METHOD, "the format", own, READ)
        groups.append({**value, "format": own})
    if not groups:
        raise variant(_METHOD, "the format", usual, READ)
    return groups


def _group_of(module: str, groups: list[Group]) -> Group:
    """Group of a module: by its name, else the first whose targets are a class."""
    for group in groups:
        if any(_named(module, target) for target in _targets(group)):
            return group
    usual = (group for group in groups if not _targets(group) or any(t[:1].isupper() for t in _targets(group)))
    return next(usual, groups[0])


def _targets(group: Group) -> list[str]:
    found = group.get("targets")
    return [each for each in found if isinstance(each, str)] if isinstance(found, list) else []


def _named(module: str, target: str) -> bool:
    if not target.startswith("re:"):
        return module == target or module.endswith(f".{target}")
    try:
        return re.match(target[3:], module) is not None
    except re.error as error:
        raise variant(_METHOD, "targets", target, ["that are regular expressions"]) from error


def _format(group: Group) -> str:
    return str(group["format"])


class _Scales(NamedTuple):
    block: tuple[int, int]  # rows and columns that share one
    shapes: tuple[tuple[int, ...], ...]  # that they may have


def _scales(owner: str, shape: tuple[int, int], weights: Mapping[str, Any]) -> _Scales:
    """Scales of a weight [N, K] by its group's strategy; raises Unrecognised for one that is not read."""
    outputs, inputs = shape
    strategy = str(weights.get("strategy") or ("group" if weights.get("group_size") else "tensor"))
    if strategy == "tensor":
        return _Scales((outputs, inputs), ((1,), (), (1, 1)))
    if strategy == "channel":
        return _Scales((1, inputs), ((outputs, 1), (outputs,)))
    if strategy in ("group", "tensor_group"):
        rows, columns = 1, number(weights, "group_size", usual=128)
    elif strategy == "block":
        block = weights.get("block_structure")
        sizes = [each for each in block if type(each) is int] if isinstance(block, list) else []
        rows, columns = sizes if len(sizes) == 2 else (0, 0)
    else:
        raise variant(_METHOD, f"the strategy of {owner}", strategy, ["tensor", "channel", "group", "block"])
    if min(rows, columns) < 1:
        raise variant(_METHOD, f"the {strategy}s of {owner}", [rows, columns], ["of 1 or more"])
    return _Scales((rows, columns), ((-(-outputs // rows), -(-inputs // columns)),))


def _packed(owner: str, name: str, group: Group, tensors: Tensors) -> Packed:
    weights = group["weights"]
    bits = number(weights, "num_bits", usual=8)
    if bits not in INTEGERS or weights.get("type", "int") != "int":
        raise variant(_METHOD, "packed numbers", f"{weights.get('type')}{bits}", ["int2", "int4", "int8"])
    outputs, words = tensors.matrix(owner, name, ("I32",))
    inputs = words * 32 // bits
    tensors.take(owner, f"{owner}.weight_shape", ("I64", "I32"), (2,))
    parts = {"values": name, "scale": f"{owner}.weight_scale", "shape": f"{owner}.weight_shape"}
    fewest = inputs - 32 // bits + 1  # the header's columns are rounded up to whole words
    told = [_scales(owner, (outputs, columns), weights) for columns in range(inputs, fewest - 1, -1)]
    scale = tensors.take(owner, parts["scale"], FLOATS, *(shape for each in told for shape in each.shapes))
    if not weights.get("symmetric", True):
        parts["zero"] = f"{owner}.weight_zero_point"
        tensors.take(owner, parts["zero"], ("I32",), (-(-outputs * bits // 32), *scale.shape[1:]))
    parts |= tensors.may("order", f"{owner}.weight_g_idx", ("I32", "I64"))
    return Packed(f"{owner}.weight", (outputs, inputs), "packed", parts, INTEGERS[bits], bits, told[0].block)


def _narrow(owner: str, name: str, group: Group, tensors: Tensors) -> Packed:
    """A weight in bytes, integers or float8, one number each."""
    shape = tensors.matrix(owner, name, ("I8", *FP8))
    told = _scales(owner, shape, group["weights"])
    parts = {"values": name, "scale": f"{owner}.weight_scale"}
    scale = tensors.take(owner, parts["scale"], SCALES, *told.shapes)
    whole = tensors.stored[name].dtype == "I8"
    zero = f"{owner}.weight_zero_point"
    if whole and not group["weights"].get("symmetric", True):
        tensors.take(owner, zero, ("I8", "U8", "I32"), scale.shape)
        parts["zero"] = zero
    else:
        tensors.may("zero", zero, ("I8", "U8", "I32", *FP8))  # written by some, and zero
    parts |= tensors.may("order", f"{owner}.weight_g_idx", ("I32", "I64"))
    return Packed(name, shape, "bytes" if whole else "float", parts, "int8" if whole else "fp8", 8, told.block)


def _fours(owner: str, name: str, group: Group, tensors: Tensors) -> Packed:
    outputs, pairs = tensors.matrix(owner, name, ("U8",))
    size = number(group["weights"], "group_size", usual=16 if _format(group) == _FOURS[0] else 32)
    shape, parts = (outputs, 2 * pairs), {"values": name, "scale": f"{owner}.weight_scale"}
    tensors.take(owner, parts["scale"], SCALES, (outputs, -(-2 * pairs // max(1, size))))
    if _format(group) == _FOURS[0]:
        parts["divisor"] = f"{owner}.weight_global_scale"
        tensors.take(owner, parts["divisor"], FLOATS, (1,), ())
    return Packed(f"{owner}.weight", shape, "fp4", parts, "fp4", 4, (1, size))
