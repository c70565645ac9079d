"""Checkpoints as they are published: recognised from headers, widened exactly, refused where they are damaged."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from scoring.config import Deployment
from scoring.errors import WeightsUnreadable
from scoring.model.loader import load
from scoring.quantization.headers import Stored, Unrecognised
from scoring.quantization.layout import quantization_of
from scoring.quantization.loading import Checkpoint
from scoring.quantization.recognised import recognise
from tests.conftest import Tiny
from tests.published import PUBLISHED, publish

SAFETENSORS = {torch.int32: "I32", torch.int64: "I64", torch.uint8: "U8", torch.int8: "I8", torch.float32: "F32",
               torch.float16: "F16", torch.bfloat16: "BF16", torch.float8_e4m3fn: "F8_E4M3"}  # fmt: skip


Published = Callable[[str], tuple[Path, dict[str, Tensor]]]


@pytest.fixture(scope="module")
def published(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Published:
    """`published(method)` gives a folder to read, and the wide weights that it stands for."""
    base, made = tmp_path_factory.mktemp("published"), {}

    def make(method: str) -> tuple[Path, dict[str, Tensor]]:
        if method not in made:
            made[method] = publish(tiny("llama", "text-generation"), base / method, method)
        return base / method, made[method]

    return make


def read(folder: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    """Tensors as transformers is given them."""
    checkpoint = Checkpoint(folder, quantization_of(folder))
    return {name: each[...] for name, each in checkpoint.tensors(torch.device("cpu"), dtype).items()}


@pytest.mark.parametrize("method", sorted(PUBLISHED))
def test_weights_are_what_the_method_says(method: str, published: Published) -> None:
    """In float32 each is the stored number times its scale; in bfloat16 that, rounded once."""
    folder, wide = published(method)
    found, half = read(folder, torch.float32), read(folder, torch.bfloat16)
    assert found.keys() == wide.keys()
    # The library's float4 is decompressed in bfloat16, or float16.
    close = 2**-8 if "fp4" in method else 1e-6
    for name, tensor in wide.items():
        assert torch.allclose(found[name], tensor.float(), rtol=close, atol=1e-8), name
        assert torch.equal(half[name], found[name].bfloat16() if "layers." in name else found[name]), name


@pytest.mark.parametrize("method", ["w4a16", "w8a8-fp8", "fp8"])
def test_transformers_own_loader_makes_the_same_model(method: str, published: Published) -> None:
    import transformers

    folder, _ = published(method)
    ours = load(Deployment("x", "text-generation", dtype="float32"), folder).model
    own = transformers.FineGrainedFP8Config if method == "fp8" else transformers.CompressedTensorsConfig
    with warnings.catch_warnings(action="ignore"):  # that the file's config goes first
        theirs = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, quantization_config=own(dequantize=True)
        )
    ids = torch.arange(5, 29)[None]
    with torch.inference_mode():
        assert torch.allclose(theirs.eval()(ids).logits, ours(ids).logits, rtol=1e-4, atol=1e-5)


def test_experts_in_mxfp4_are_what_transformers_makes_of_them(tmp_path: Path) -> None:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    from scoring.quantization.dequantize import widen

    blocks = torch.randint(0, 256, (3, 20, 2, 16), dtype=torch.uint8)
    scales = torch.randint(100, 130, (3, 20, 2), dtype=torch.uint8)
    stored = {"x.up_proj_blocks": Stored("U8", (3, 20, 2, 16)), "x.up_proj_scales": Stored("U8", (3, 20, 2))}
    (weight,) = recognise({"quant_method": "mxfp4"}, stored).weights
    assert (weight.name, weight.shape) == ("x.up_proj", (3, 64, 20))
    found = widen(weight, {"values": blocks, "scale": scales}, torch.bfloat16)
    assert torch.equal(found, convert_moe_packed_tensors(blocks, scales))


def test_a_type_of_its_own_for_some_modules() -> None:
    """Groups by name and by class: the head in 8 bits, the rest in 4."""
    four = {"num_bits": 4, "strategy": "group", "group_size": 32}
    groups = {
        "a": {"targets": ["Linear"], "weights": four},
        "b": {"targets": ["re:.*head$"], "weights": {"num_bits": 8, "strategy": "channel"}},
    }
    told = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": groups}
    stored = {}
    for name, words, scales in (("lm_head", 16, 1), ("model.q_proj", 8, 2)):
        stored[f"{name}.weight_packed"] = Stored("I32", (6, words))
        stored[f"{name}.weight_scale"] = Stored("BF16", (6, scales))
        stored[f"{name}.weight_shape"] = Stored("I64", (2,))
    found = {weight.name: (weight.kind, weight.shape) for weight in recognise(told, stored).weights}
    assert found == {"lm_head.weight": ("int8", (6, 64)), "model.q_proj.weight": ("int4", (6, 64))}


def headers(folder: Path) -> tuple[dict[str, Any], dict[str, Stored]]:
    told = json.loads((folder / "config.json").read_text())["quantization_config"]
    stored = load_file(folder / "model.safetensors")
    return told, {name: Stored(SAFETENSORS[each.dtype], tuple(each.shape)) for name, each in stored.items()}


@pytest.mark.parametrize("method", sorted(PUBLISHED))
def test_no_part_may_be_missing_or_of_another_shape(method: str, published: Published) -> None:
    """Each stored tensor of one product, dropped, cut by a row, and as integers: a sentence that names it."""
    told, stored = headers(published(method)[0])
    recognise(told, stored)
    for name in [name for name in stored if "layers.0.mlp.up_proj" in name]:
        whole = stored[name]
        longer = whole._replace(shape=(whole.shape[0] + 1, *whole.shape[1:]) if whole.shape else (3, 3))
        for way, other in (("absent", None), ("longer", longer), ("typed", whole._replace(dtype="BOOL"))):
            free = ("up_proj.weight",) if method in FREE and way == "longer" else ()
            if name.endswith(UNTOLD[way] + free):
                continue
            damaged = {key: value for key, value in stored.items() if key != name}
            with pytest.raises(Unrecognised, match=r"up_proj") as caught:
                recognise(told, damaged if other is None else damaged | {name: other})
            assert caught.value.damaged


#: Methods whose scales do not tell a weight's rows.
FREE = ("w8a8-fp8-tensor", "bnb-nf4", "bnb-nf4-nested")
#: Endings of parts whose damage headers do not show: what nobody reads, and what another file's sizes would tell.
UNTOLD: dict[str, tuple[str, ...]] = {
    "absent": ("g_idx", "input_scale_ub", "weight_format", "weight_g_idx"),
    "longer": ("input_scale_ub", "weight_format", "absmax", "__nf4"),
    "typed": ("input_scale_ub", "weight_format", "__nf4"),
}


@pytest.mark.parametrize(
    ("told", "match", "hint"),
    [
        ({"quant_method": "aqlm"}, "aqlm", "awq"),
        ({"quant_method": "gptqq"}, "gptqq", "gptq'"),
        ({}, "unnamed", "unquantised"),
        ({"quant_method": "awq", "bits": 3}, "bits 3", "4"),
        ({"quant_method": "awq", "version": "gemv"}, "gemv", "gemm"),
        ({"quant_method": "gptq", "bits": 3}, "bits 3", "2, 4, 8"),
        ({"quant_method": "gptq", "checkpoint_format": "marlin"}, "marlin", "gptq_v2"),
        ({"quant_method": "fp8", "weight_block_size": [0, 128]}, "weight_block_size", "128"),
        ({"quant_method": "compressed-tensors", "format": "marlin-24"}, "marlin-24", "pack-quantized"),
        ({"quant_method": "compressed-tensors", "sparsity_config": {"format": "sparse-24-bitmask"}}, "sparse", "dense"),
    ],
)
def test_what_nobody_knows_is_refused_with_what_works(told: dict[str, Any], match: str, hint: str) -> None:
    with pytest.raises(Unrecognised, match=match) as caught:
        recognise(told, {})
    assert hint in caught.value.hint
    assert not caught.value.damaged


def rewrite(part: str, change: Callable[[Tensor], Tensor]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        stored = load_file(folder / "model.safetensors")
        name = f"model.layers.0.mlp.up_proj.{part}"
        stored[name] = change(stored[name])
        save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})

    return damage


@pytest.mark.parametrize(
    ("method", "damage", "told"),
    [
        ("w4a16", rewrite("weight_shape", lambda shape: shape + 1), "weight_shape says"),
        ("gptq-ordered", rewrite("g_idx", lambda order: order + 1), "order of inputs"),
        ("bnb-nf4", rewrite("weight.quant_state.bitsandbytes__nf4", lambda state: state[1:]), "no description"),
        ("bnb-nf4", rewrite("weight.absmax", lambda scale: scale[1:]), "scales"),
    ],
)
def test_damage_that_only_the_numbers_show(
    method: str, damage: Callable[[Path], None], told: str, tiny: Tiny, tmp_path: Path
) -> None:
    publish(tiny("llama", "text-generation"), tmp_path / "m", method)
    damage(tmp_path / "m")
    with pytest.raises(WeightsUnreadable, match=told):
        load(Deployment("x", "text-generation", dtype="float32"), tmp_path / "m")


def test_a_config_of_quantisation_beside_wide_weights_is_a_wide_model(tiny: Tiny, tmp_path: Path) -> None:
    """As of those that a user's program quantised at load."""
    wide = publish(tiny("llama", "text-generation"), tmp_path / "m", "bnb-nf4", only="nothing")
    found = read(tmp_path / "m", torch.float32)
    assert all(torch.equal(found[name], tensor) for name, tensor in wide.items())
