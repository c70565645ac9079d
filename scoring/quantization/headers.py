"""Stored tensors as headers tell them, and the quantised weights that they make up: described without torch."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

#: Layouts that `scoring.quantization.dequantize` widens.
Form = Literal["packed", "bytes", "awq", "gptq", "gptq_v2", "float", "fp4", "experts", "bnb4", "bnb8"]


#: Numbers that a weight is made of; "nf4" are those of the normal distribution.
Kind = Literal["int2", "int4", "int8", "fp8", "fp4", "nf4"]
#: Kinds of integers by their bits.
INTEGERS: dict[int, Kind] = {2: "int2", 4: "int4", 8: "int8"}


class Stored(NamedTuple):
    """A tensor of a file, as its header tells it."""

    dtype: str  # safetensors' name, e.g. "F32"
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Packed:
    """A weight that is stored quantised, and the stored tensors that make it up."""

    name: str  # of its wide form, as an unquantised checkpoint would have it
    shape: tuple[int, ...]  # of its wide form; of packed columns the header tells no more than a multiple of 8
    form: Form
    parts: Mapping[str, str]  # names of stored tensors by role: values, scale, zero, shape, order, ...
    kind: Kind
    bits: int
    block: tuple[int, int] = (1, 0)  # rows and columns that share a scale; 0 columns: all of them


class Unrecognised(Exception):
    """Refusal of a checkpoint; `damaged` if a known method's tensors do not fit together."""

    def __init__(self, sentence: str, hint: str, damaged: bool = False) -> None:
        super().__init__(sentence)
        self.hint, self.damaged = hint, damaged


def damaged(sentence: str) -> Unrecognised:
    """Refusal of tensors that do not fit together."""
    return Unrecognised(sentence, "Copy the weights again, all files from one place.", damaged=True)


FLOATS = ("F64", "F32", "F16", "BF16")
SCALES = (*FLOATS, "F8_E8M0", "F8_E4M3", "U8")
FP8 = ("F8_E4M3", "F8_E5M2")
#: Types of which no weight is made without a scale.
NARROW = (*FP8, "I8", "U8", "I32", "F4", "F6_E2M3", "F6_E3M2")
#: Endings of scales of activations and of keys and values, which are served in 16 bits.
UNUSED = ("input_scale", "output_scale", "activation_scale", "k_scale", "v_scale", "q_scale", "kv_scale", "prob_scale",
           "input_global_scale", "input_zero_point", "output_zero_point", "weight_format", "k_zero_point",
           "v_zero_point", "activation_scale_ub", "input_scale_ub")  # fmt: skip
#: Endings of parts of a quantised weight, none of which stands alone.
PARTS = (".weight_packed", ".weight_scale", ".weight_scale_inv", ".weight_shape", ".qweight", ".qzeros", ".scales",
         ".SCB", ".absmax", ".quant_map", "_blocks", "_scales")  # fmt: skip


class Tensors:
    """Stored tensors, of which parts are taken."""

    def __init__(self, stored: Mapping[str, Stored]) -> None:
        self.stored = stored
        self.taken: set[str] = set()

    def ending(self, *endings: str, dtypes: tuple[str, ...] = ()) -> list[tuple[str, str]]:
        """Sorted (name without the ending, name) of tensors with an ending, and of one of these types if given."""
        found = []
        for name, tensor in self.stored.items():
            ending = next((each for each in endings if name.endswith(each)), "")
            if ending and name not in self.taken and (not dtypes or tensor.dtype in dtypes):
                found.append((name.removesuffix(ending), name))
        return sorted(found)

    def take(self, owner: str, name: str, dtypes: tuple[str, ...], *shapes: tuple[int, ...]) -> Stored:
        """Take a part of a weight; raises Unrecognised if it is absent, or has another type or shape."""
        tensor = self.stored.get(name)
        if tensor is None:
            raise damaged(f"The quantised weight {owner.rstrip('.')} lacks {name}.")
        if tensor.dtype not in dtypes:
            raise damaged(f"{name} is of the type {tensor.dtype}, where {' or '.join(dtypes)} belongs.")
        if shapes and tensor.shape not in shapes:
            raise damaged(f"{name} is {list(tensor.shape)}, where {list(shapes[0])} belongs.")
        self.taken.add(name)
        return tensor

    def may(self, role: str, name: str, dtypes: tuple[str, ...], *shapes: tuple[int, ...]) -> dict[str, str]:
        """Take a part that may be absent: {role: name}, or nothing."""
        return {role: name} if name in self.stored and self.take("", name, dtypes, *shapes) else {}

    def matrix(self, owner: str, name: str, dtypes: tuple[str, ...]) -> tuple[int, int]:
        """Take a part of two dimensions; its shape."""
        shape = self.take(owner, name, dtypes).shape
        if len(shape) != 2 or 0 in shape:
            raise damaged(f"{name} is {list(shape)}, where a matrix belongs.")
        return shape[0], shape[1]


def variant(method: str, what: str, value: Any, able: Iterable[Any]) -> Unrecognised:
    """Refusal of a variant of a method, with those that are read."""
    known = ", ".join(str(each) for each in able)
    return Unrecognised(
        f"The weights are quantised by {method} with {what} {value!r}, which is not read here.",
        f"Use the unquantised model, or one with {what} {known}.",
    )


def number(told: Mapping[str, Any], *names: str, usual: int) -> int:
    """Whole number that a config has under the first of these names; the usual one if it has none."""
    value = next((told[name] for name in names if told.get(name) is not None), usual)
    return value if isinstance(value, int) and not isinstance(value, bool) else usual
