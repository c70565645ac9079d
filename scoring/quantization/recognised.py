"""Quantised weights of published checkpoints, recognised from config and headers alone: without torch or a weight.

`recognise` finds for each quantised weight the stored tensors that make it up, and checks their types and shapes, so
that a checkpoint is planned, and refused, before anything is downloaded or loaded.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from scoring.quantization import compressed_groups, methods
from scoring.quantization.headers import NARROW, PARTS, UNUSED, Packed, Stored, Tensors, Unrecognised, damaged, number


@dataclass(frozen=True)
class Recognised:
    """Quantised weights of a checkpoint, and the stored tensors that no wide checkpoint has."""

    weights: tuple[Packed, ...]
    dropped: frozenset[str]  # parts of them, and scales of activations and caches, which are not quantised here

    @property
    def kind(self) -> str:
        """Numbers that most weights are made of; empty without any."""
        kinds = [weight.kind for weight in self.weights]
        return max(sorted(set(kinds)), key=kinds.count, default="")


def recognise(told: Mapping[str, Any], stored: Mapping[str, Stored]) -> Recognised:
    """Recognise the weights of a checkpoint by its `quantization_config`.

    Raises Unrecognised for a method or a variant that is not read, for a part that is missing, and for one of another
    type or shape.
    """
    method = method_of(told)
    tensors = Tensors(stored)
    weights = tuple(sorted(_METHODS[method](told, tensors), key=lambda weight: weight.name))
    unused = {name for name in stored if name.endswith(UNUSED) and name not in tensors.taken}
    alone = sorted(name for name in stored.keys() - tensors.taken - unused if name.endswith(PARTS))
    if alone:
        raise damaged(f"{alone[0]} is a part of a quantised weight whose other parts are not there.")
    left = sorted(
        name for name in stored.keys() - tensors.taken - unused if stored[name].dtype in NARROW and _learned(name)
    )
    if left:
        raise damaged(f"{left[0]} is of the type {stored[left[0]].dtype} and has no scale that {method} names.")
    twice = sorted({weight.name for weight in weights} & (stored.keys() - tensors.taken))
    if twice:
        raise damaged(f"{twice[0]} is stored twice, quantised and not.")
    return Recognised(weights, frozenset(tensors.taken | unused))


def method_of(told: Mapping[str, Any]) -> str:
    """Name of the method in a `quantization_config`; raises Unrecognised for one that is not read."""
    method = told.get("quant_method")
    if method is None and (told.get("load_in_4bit") or told.get("load_in_8bit")):
        method = "bitsandbytes"
    method = {"bnb": "bitsandbytes"}.get(str(method), str(method) if method else "")
    if method in _METHODS:
        return method
    near = get_close_matches(method, _METHODS, n=1)
    instead = f"Did the config mean {near[0]!r}? Else u" if near else "U"
    raise Unrecognised(
        f"The weights are quantised by {method or 'an unnamed method'}, which is not read here.",
        f"{instead}se the unquantised model, or one published as {', '.join(sorted(_METHODS))}.",
    )


def kind_of(told: Mapping[str, Any]) -> str:
    """Numbers that most weights are made of, as far as a `quantization_config` tells without headers; "" if not."""
    try:
        method = method_of(told)
        if method == "compressed-tensors":
            return compressed_groups.kind_of(told)
    except Unrecognised:
        return ""
    if method == "bitsandbytes":
        return "int8" if told.get("load_in_8bit") else str(told.get("bnb_4bit_quant_type") or "fp4")
    if method in ("awq", "gptq"):
        return f"int{number(told, 'bits', 'w_bit', usual=4)}"
    return "fp4" if method == "mxfp4" else "fp8"


def _learned(name: str) -> bool:
    return name.endswith(("weight", "_blocks", "_packed", "qweight", "_proj", "_scales"))


_METHODS: dict[str, Callable[[Mapping[str, Any], Tensors], Iterable[Packed]]] = {
    "awq": methods.awq,
    "bitsandbytes": methods.bitsandbytes,
    "compressed-tensors": compressed_groups.weights_of,
    "fbgemm_fp8": methods.fbgemm,
    "fp8": methods.fine_grained,
    "gptq": methods.gptq,
    "mxfp4": methods.mxfp4,
}
