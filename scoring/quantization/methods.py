"""Layouts of published methods beside compressed-tensors: which stored tensors make up a weight. Without torch.

N is a product's outputs, K its inputs, G the groups of inputs that share a scale.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from scoring.quantization.headers import FLOATS, FP8, INTEGERS, SCALES, Packed, Tensors, damaged, number, variant


# AWQ's layout "gemm": qweight [K, N/8] and qzeros [K/g, N/8] hold eight outputs a word in the order 0 2 4 6 1 3 5 7.
def awq(told: Mapping[str, Any], tensors: Tensors) -> Iterable[Packed]:
    if (bits := number(told, "bits", "w_bit", usual=4)) != 4:
        raise variant("awq", "bits", bits, [4])
    if (version := str(told.get("version") or "gemm").lower()) != "gemm":
        raise variant("awq", "version", version, ["gemm"])
    asked = number(told, "group_size", "q_group_size", usual=128)
    for owner, name in tensors.ending("qweight"):
        inputs, words = tensors.matrix(owner, name, ("I32",))
        size = inputs if asked <= 0 else asked
        groups = -(-inputs // size)
        tensors.take(owner, f"{owner}scales", FLOATS, (groups, 8 * words))
        tensors.take(owner, f"{owner}qzeros", ("I32",), (groups, words))
        parts = {"values": name, "scale": f"{owner}scales", "zero": f"{owner}qzeros"}
        yield Packed(f"{owner}weight", (8 * words, inputs), "awq", parts, "int4", 4, (1, size))


# GPTQ: qweight [K bits/32, N] holds inputs of a column a word, the first lowest; qzeros [G, N bits/32] outputs, one too
# small unless the format is "gptq_v2"; g_idx [K] tells each input's group where they were ordered by activations.
def gptq(told: Mapping[str, Any], tensors: Tensors) -> Iterable[Packed]:
    if (bits := number(told, "bits", usual=4)) not in (2, 4, 8):
        raise variant("gptq", "bits", bits, [2, 4, 8])
    form = str(told.get("checkpoint_format") or "gptq")
    if form not in ("gptq", "gptq_v2"):
        raise variant("gptq", "checkpoint_format", form, ["gptq", "gptq_v2"])
    asked, each = number(told, "group_size", usual=128), 32 // bits
    for owner, name in tensors.ending("qweight"):
        words, outputs = tensors.matrix(owner, name, ("I32",))
        inputs = words * each
        size = inputs if asked <= 0 else asked
        groups = -(-inputs // size)
        tensors.take(owner, f"{owner}scales", FLOATS, (groups, outputs))
        tensors.take(owner, f"{owner}qzeros", ("I32",), (groups, -(-outputs // each)))
        parts = {"values": name, "scale": f"{owner}scales", "zero": f"{owner}qzeros"}
        parts |= tensors.may("order", f"{owner}g_idx", ("I32",), (inputs,))
        shape, kind = (outputs, inputs), INTEGERS[bits]
        yield Packed(f"{owner}weight", shape, "gptq" if form == "gptq" else "gptq_v2", parts, kind, bits, (1, size))


# fbgemm: weight [N, K] in float8 and weight_scale [N, 1].
def fbgemm(_: Mapping[str, Any], tensors: Tensors) -> Iterable[Packed]:
    for owner, name in tensors.ending("weight", dtypes=FP8):
        outputs, inputs = tensors.matrix(owner, name, FP8)
        scale = f"{owner}weight_scale"
        tensors.take(owner, scale, SCALES, (outputs, 1), (outputs,))
        yield Packed(name, (outputs, inputs), "float", {"values": name, "scale": scale}, "fp8", 8, (1, inputs))


# DeepSeek's fine-grained float8: weight [N, K], and weight_scale_inv, which multiplies a block of 128 by 128.
def fine_grained(told: Mapping[str, Any], tensors: Tensors) -> Iterable[Packed]:
    size = told.get("weight_block_size", (128, 128))
    size = tuple(size) if isinstance(size, list | tuple) and all(type(each) is int for each in size) else None
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise variant("fp8", "weight_block_size", list(size), ["[128, 128]"])
    for owner, name in tensors.ending("weight", dtypes=FP8):
        outputs, inputs = tensors.matrix(owner, name, FP8)
        rows, columns = size or (outputs, inputs)
        scale = f"{owner}weight_scale_inv"
        whole: tuple[tuple[int, ...], ...] = ((), (1,), (1, 1)) if size is None else ()
        tensors.take(owner, scale, SCALES, (-(-outputs // rows), -(-inputs // columns)), *whole)
        parts = {"values": name, "scale": scale}
        yield Packed(name, (outputs, inputs), "float", parts, "fp8", 8, (rows, columns))


# MXFP4 as gpt-oss has it: blocks [experts, N, K/32, 16], two numbers a byte, the first lowest, and the exponent of each
# block plus 127 in scales [experts, N, K/32]; the wide weight is [experts, K, N].
def mxfp4(_: Mapping[str, Any], tensors: Tensors) -> Iterable[Packed]:
    for owner, name in tensors.ending("_blocks"):
        shape = tensors.take(owner, name, ("U8",)).shape
        if len(shape) != 4 or shape[3] != 16 or 0 in shape:
            raise damaged(f"{name} is {list(shape)}, where [experts, outputs, inputs / 32, 16] belongs.")
        tensors.take(owner, f"{owner}_scales", ("U8",), shape[:3])
        parts = {"values": name, "scale": f"{owner}_scales"}
        experts, outputs, blocks, _size = shape
        yield Packed(owner, (experts, 32 * blocks, outputs), "experts", parts, "fp4", 4, (1, 32))


# bitsandbytes: in 4 bits, weight [N K/2, 1] with absmax and quant_map (and the same of absmax, nested) and a JSON text
# of sizes; in 8 bits, weight [N, K] and SCB [N], 127 times the scale.
def bitsandbytes(_: Mapping[str, Any], tensors: Tensors) -> Iterable[Packed]:
    states = (f".weight.quant_state.bitsandbytes__{kind}" for kind in ("nf4", "fp4"))
    for owner, state in tensors.ending(*states):
        tensors.taken.add(state)
        name = f"{owner}.weight"
        count = 2 * tensors.matrix(owner, name, ("U8",))[0]
        tensors.take(name, f"{name}.quant_map", ("F32",), (16,))
        absmax = tensors.take(name, f"{name}.absmax", ("F32", "U8"))
        parts = {"values": name, "state": state, "scale": f"{name}.absmax", "map": f"{name}.quant_map"}
        if absmax.dtype == "U8":
            tensors.take(name, f"{name}.nested_quant_map", ("F32",), (256,))
            tensors.take(name, f"{name}.nested_absmax", ("F32",))
            parts |= {"nested_map": f"{name}.nested_quant_map", "nested_scale": f"{name}.nested_absmax"}
        yield Packed(name, (count,), "bnb4", parts, "nf4" if state.endswith("nf4") else "fp4", 4)
    for owner, name in tensors.ending(".weight", dtypes=("I8",)):
        outputs, inputs = tensors.matrix(owner, name, ("I8",))
        tensors.take(owner, f"{owner}.SCB", ("F32",), (outputs,))
        yield Packed(name, (outputs, inputs), "bnb8", {"values": name, "scale": f"{owner}.SCB"}, "int8", 8, (1, inputs))
