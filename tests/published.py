"""Tiny checkpoints in the layouts that quantised models are published in, packed as each method's own tool packs them.

A packer takes a float32 weight [N, K] and gives the stored tensors of its module by their last names, and the weight
that they stand for. Those of compressed-tensors are the library's own; the others follow the public layouts number by
number, in plain loops.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Packer = Callable[[Tensor], tuple[dict[str, Tensor], Tensor]]

GROUP = 16  # inputs that share a scale


def grouped(weight: Tensor, bits: int, symmetric: bool, group: int = GROUP) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers from 0 [N, K], scales [N, G] in float16, zeros [N, G]."""
    shaped = weight.view(len(weight), -1, group)
    most = 2**bits - 1
    if symmetric:
        scale = shaped.abs().amax(2) / (most // 2)
        zero = torch.full_like(scale, 2 ** (bits - 1))
    else:
        low, high = shaped.amin(2).clamp(max=0), shaped.amax(2).clamp(min=0)
        scale = (high - low) / most
        zero = (-low / scale).round()
    scale = scale.half().float()
    numbers = (shaped / scale[..., None] + zero[..., None]).round().clamp(0, most)
    return numbers.view_as(weight).int(), scale.half(), zero.int()


def widened(numbers: Tensor, scale: Tensor, zero: Tensor, order: list[int]) -> Tensor:
    return (numbers - zero[:, order]).float() * scale.float()[:, order]


def in_words(numbers: Tensor, bits: int, order: tuple[int, ...] | None = None) -> Tensor:
    """Pack int [R, C] along the columns into int32 [R, C bits/32]; place i of a word takes its column order[i]."""
    each = 32 // bits
    words = torch.zeros(len(numbers), numbers.shape[1] // each, dtype=torch.int64)
    for word in range(words.shape[1]):
        for place in range(each):
            column = word * each + (order[place] if order else place)
            words[:, word] |= numbers[:, column].long() << (bits * place)
    return torch.where(words >= 2**31, words - 2**32, words).int()


def awq(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    numbers, scale, zero = grouped(weight, 4, False)
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    stored = {
        "qweight": in_words(numbers.t(), 4, order),
        "qzeros": in_words(zero.t(), 4, order),
        "scales": scale.t().contiguous(),
    }
    return stored, widened(numbers, scale, zero, [k // GROUP for k in range(weight.shape[1])])


def gptq(bits: int, symmetric: bool, less: int = 1, ordered: bool = False) -> Packer:
    """GPTQ's packer; `less` is what the format takes off zeros, `ordered` mixes the inputs of the groups."""

    def pack(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        count = weight.shape[1]
        places = torch.randperm(count, generator=torch.Generator().manual_seed(1)) if ordered else torch.arange(count)
        numbers, scale, zero = grouped(weight[:, places], bits, symmetric)
        index = torch.empty(count, dtype=torch.int32)
        index[places] = torch.arange(count, dtype=torch.int32) // GROUP
        back = places.argsort()
        stored = {
            "qweight": in_words(numbers[:, back], bits).t().contiguous(),
            "qzeros": in_words((zero - less).t() & (2**bits - 1), bits),
            "scales": scale.t().contiguous(),
            "g_idx": index,
        }
        stored["qweight"] = in_words(numbers[:, back].contiguous(), bits).t().contiguous()
        return stored, widened(numbers[:, back], scale, zero, index.tolist())

    return pack


def compressed(form: str, **weights: Any) -> Packer:
    """The packer of the library compressed-tensors, and what its own decompressor makes of it."""

    def pack(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        from compressed_tensors.compressors.base import BaseCompressor
        from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
        from compressed_tensors.quantization.utils import calculate_qparams

        scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**weights), format=form)
        args = scheme.weights
        low, high = _extremes(weight, weights)
        scale, zero = calculate_qparams(low, high, args)
        given = {"weight": weight, "weight_scale": scale, "weight_zero_point": zero}
        if form.startswith("nvfp4"):
            given["weight_global_scale"] = torch.tensor([448.0 * 6.0]) / weight.abs().max()
            scale, _ = calculate_qparams(low, high, args, global_scale=given["weight_global_scale"])
            given["weight_scale"] = scale
        method = BaseCompressor.get_value_from_registry(form)
        stored = method.compress(given, scheme)
        wide = method.decompress(stored, scheme)["weight"].float()
        return {name: tensor.contiguous() for name, tensor in stored.items()}, wide

    return pack


def _extremes(weight: Tensor, args: dict[str, Any]) -> tuple[Tensor, Tensor]:
    if args["strategy"] == "tensor":
        return weight.amin().view(1), weight.amax().view(1)
    if args["strategy"] == "channel":
        return weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
    if args["strategy"] == "block":
        rows, columns = args["block_structure"]
        shaped = weight.view(len(weight) // rows, rows, -1, columns)
        return shaped.amin((1, 3)), shaped.amax((1, 3))
    shaped = weight.view(len(weight), -1, args["group_size"])
    return shaped.amin(2), shaped.amax(2)


def fine_grained(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    blocks = weight.view(len(weight) // GROUP, GROUP, -1, GROUP)
    scale = blocks.abs().amax((1, 3)) / 448
    values = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn)
    wide = values.float() * scale[:, None, :, None]
    return {"weight": values.view(weight.shape), "weight_scale_inv": scale}, wide.view(weight.shape)


def fbgemm(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    scale = weight.abs().amax(1, keepdim=True) / 448
    values = (weight / scale).to(torch.float8_e4m3fn)
    return {"weight": values, "weight_scale": scale, "input_scale_ub": torch.tensor([1200.0])}, values.float() * scale


def bnb8(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    largest = weight.abs().amax(1)
    values = (weight * 127 / largest[:, None]).round().to(torch.int8)
    stored = {"weight": values, "SCB": largest, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    return stored, values.float() * (largest / 127)[:, None]


NF4 = (-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
       -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634,
       0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0)  # fmt: skip


def bnb4(nested: bool) -> Packer:
    """The packer of bitsandbytes in 4 bits; `nested` quantises the scales too, each to the nearest of 256 numbers."""

    def pack(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        size, table = 64, torch.tensor(NF4)
        blocks = weight.reshape(-1, size)
        absmax = blocks.abs().amax(1)
        told: dict[str, Any] = {"quant_type": "nf4", "blocksize": size, "dtype": "float32", "shape": list(weight.shape)}
        stored = {}
        if nested:
            offset, outer_size = absmax.mean(), 2
            outer = (absmax - offset).view(-1, outer_size).abs().amax(1)
            outer_map = torch.linspace(-1, 1, 256)
            share = (absmax - offset) / outer.repeat_interleave(outer_size)
            index = (share[:, None] - outer_map).abs().argmin(1)
            absmax = outer_map[index] * outer.repeat_interleave(outer_size) + offset
            told |= {"nested_blocksize": outer_size, "nested_offset": float(offset), "nested_dtype": "float32"}
            stored = {"weight.nested_absmax": outer, "weight.nested_quant_map": outer_map}
        places = ((blocks / absmax[:, None])[..., None] - table).abs().argmin(-1)
        flat = places.view(-1)
        stored |= {
            "weight": (flat[0::2] << 4 | flat[1::2]).to(torch.uint8)[:, None],
            "weight.absmax": index.to(torch.uint8) if nested else absmax,
            "weight.quant_map": table,
            "weight.quant_state.bitsandbytes__nf4": torch.tensor(list(json.dumps(told).encode()), dtype=torch.uint8),
        }
        return stored, (table[places] * absmax[:, None]).view(weight.shape)

    return pack


def _groups(form: str, **weights: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": group}, "ignore": []}


def _compressed(form: str, **weights: Any) -> tuple[dict[str, Any], Packer]:
    return _groups(form, **weights), compressed(form, **weights)


_GPTQ = {"quant_method": "gptq", "group_size": GROUP, "desc_act": False}
#: A `quantization_config` and its packer, by a name.
PUBLISHED: dict[str, tuple[dict[str, Any], Packer]] = {
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}, awq),
    "gptq": (_GPTQ | {"bits": 4, "sym": True}, gptq(4, True)),
    "gptq-asymmetric": (_GPTQ | {"bits": 4, "sym": False}, gptq(4, False)),
    "gptq-ordered": (_GPTQ | {"bits": 4, "sym": True, "desc_act": True}, gptq(4, True, ordered=True)),
    "gptq-8": (_GPTQ | {"bits": 8, "sym": True}, gptq(8, True)),
    "gptq-2": (_GPTQ | {"bits": 2, "sym": False}, gptq(2, False)),
    "gptq-v2": (_GPTQ | {"bits": 4, "sym": True, "checkpoint_format": "gptq_v2"}, gptq(4, True, less=0)),
    "w4a16": _compressed("pack-quantized", num_bits=4, strategy="group", group_size=GROUP, symmetric=True),
    "w4a16-asymmetric": _compressed("pack-quantized", num_bits=4, strategy="group", group_size=GROUP, symmetric=False),
    "w4a16-rows": _compressed("pack-quantized", num_bits=4, strategy="channel", symmetric=True),
    "w8a16": _compressed("pack-quantized", num_bits=8, strategy="channel", symmetric=True),
    "w8a8-int": _compressed("int-quantized", num_bits=8, strategy="channel", symmetric=True),
    "w8a8-int-asymmetric": _compressed("int-quantized", num_bits=8, strategy="channel", symmetric=False),
    "w8a8-fp8": _compressed("float-quantized", num_bits=8, type="float", strategy="channel", symmetric=True),
    "w8a8-fp8-tensor": _compressed("float-quantized", num_bits=8, type="float", strategy="tensor", symmetric=True),
    "w8a8-fp8-blocks": _compressed("float-quantized", num_bits=8, type="float", strategy="block",
                                   block_structure=[GROUP, GROUP], symmetric=True),
    "nvfp4": _compressed("nvfp4-pack-quantized", num_bits=4, type="float", strategy="tensor_group", group_size=16,
                         symmetric=True, scale_dtype="torch.float8_e4m3fn"),
    "mxfp4-packed": _compressed("mxfp4-pack-quantized", num_bits=4, type="float", strategy="group", group_size=32,
                                symmetric=True, scale_dtype="torch.uint8"),
    "fp8": ({"quant_method": "fp8", "weight_block_size": [GROUP, GROUP], "activation_scheme": "dynamic"}, fine_grained),
    "fbgemm": ({"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}, fbgemm),
    "bnb-int8": ({"quant_method": "bitsandbytes", "load_in_8bit": True}, bnb8),
    "bnb-nf4": ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, bnb4(False)),
    "bnb-nf4-nested": ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_use_double_quant": True,
                        "bnb_4bit_quant_type": "nf4"}, bnb4(True)),
}  # fmt: skip


def publish(source: Path, target: Path, method: str, only: str = "layers.") -> dict[str, Tensor]:
    """Write a tiny model's folder with the products of its layers quantised; its wide weights, float32."""
    config, pack = PUBLISHED[method]
    shutil.copytree(source, target)
    stored, wide = {}, {}
    for name, tensor in load_file(source / "model.safetensors").items():
        if tensor.ndim == 2 and only in name:
            parts, wide[name] = pack(tensor.float())
            stored |= {f"{name.removesuffix('weight')}{part}": each for part, each in parts.items()}
        else:
            stored[name] = wide[name] = tensor
    save_file(stored, target / "model.safetensors", metadata={"format": "pt"})
    told = json.loads((source / "config.json").read_text()) | {"quantization_config": config}
    (target / "config.json").write_text(json.dumps(told))
    return wide
