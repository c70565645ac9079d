"""Weights that a folder holds as int8: widened as they are, nothing lost by quantising again, told when damaged."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mii_azure.quantize.writer import Writer, products_of
from scoring.config import Deployment, Limits
from scoring.decoder.adapters.builders import build
from scoring.decoder.model import Linear, quantize_weights
from scoring.errors import HeadMissing, WeightsUnreadable
from scoring.model.loader import load, survey
from scoring.passes.base import LATENCY, Hardware
from scoring.passes.hf_verify import reload
from scoring.passes.static_decode import StaticDecode
from scoring.passes.weight_only import WeightOnly
from scoring.quantization.compressed_tensors import pack, unpack, widen
from scoring.quantization.compressed_tensors import quantize as ship
from scoring.quantization.layout import Made
from scoring.quantization.loading import from_pretrained
from scoring.tensor_parallel.worker import load as load_rank
from scoring.tensor_parallel.workers import ShardSpec
from tests.conftest import Tiny

Shipped = Callable[..., Path]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture
def shipped(tiny: Tiny, tmp_path: Path) -> Shipped:
    """`shipped(family, task, dtype)` gives a folder of the test's own whose products are int8."""

    def make(family: str, task: str = "text-generation", dtype: torch.dtype = torch.float32) -> Path:
        source, target = tiny(family, task), tmp_path / f"{family}-{dtype}"
        shutil.copytree(source, target)
        Writer(source, target, dtype).write()
        return target

    return make


def again(weight: Tensor) -> Tensor:
    """int8 of a weight, as the pass weight_only makes it at start."""

    class OneProduct:
        product = Linear(weight)

        def products(self) -> list[Linear]:
            return [self.product]

    model: Any = OneProduct()
    quantize_weights(model)
    return model.product.weight


@settings(max_examples=80, deadline=None)
@given(
    exponent=st.integers(-40, 15),
    seed=st.integers(0, 2**31),
    stored=st.sampled_from(DTYPES),
    served=st.sampled_from(DTYPES),
    columns=st.integers(1, 70),
)
def test_quantising_what_was_widened_gives_the_same_numbers(
    exponent: int, seed: int, stored: torch.dtype, served: torch.dtype, columns: int
) -> None:
    """In every type: rows of tiny numbers, of one column, of zeros, and rows with one large number."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(64, columns, generator=generator) * 2.0**exponent
    weight[0] = 0
    weight[1, 0] *= 30
    weight = weight.clamp(-65000, 65000).to(stored)
    narrow, scale = ship(weight, served)
    assert torch.equal(again(widen(narrow, scale, served)), narrow)


def test_all_numbers_of_a_row_survive_in_every_type() -> None:
    """-127 to 127 under scales all over a binade, where bfloat16's steps are widest."""
    for served in DTYPES:
        largest = torch.linspace(1, 2, 300)[:, None]
        weight = torch.arange(-127, 128)[None, :] / 127 * largest
        narrow, scale = ship(weight, served)
        assert torch.equal(again(widen(narrow, scale, served)), narrow)
        assert int(narrow.abs().amax(1).min()) == 127


def test_an_error_is_half_a_step() -> None:
    weight = torch.randn(50, 300, generator=torch.Generator().manual_seed(1))
    narrow, scale = ship(weight, torch.float32)
    assert ((widen(narrow, scale, torch.float32) - weight).abs() <= 0.5001 * scale).all()
    assert (scale * 127 <= weight.abs().amax(1, keepdim=True) * (1 + 2**-8)).all()


@pytest.mark.parametrize("columns", [1, 3, 4, 17, 64])
def test_packing_is_undone_and_is_compressed_tensors_own(columns: int) -> None:
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    narrow = torch.randint(-127, 128, (9, columns), dtype=torch.int8)
    assert torch.equal(unpack(pack(narrow), columns), narrow)
    assert torch.equal(pack(narrow), pack_to_int32(narrow, 8))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", ["llama", "gpt_neox", "opt"])
def test_a_loaded_decoder_has_the_shipped_numbers(family: str, dtype: torch.dtype, shipped: Shipped) -> None:
    """Every product of the decoder that weight_only quantises, but an output matrix that is the table of inputs."""
    folder = shipped(family, dtype=dtype)
    name = str(dtype).removeprefix("torch.")
    hf_model = load(Deployment("x", "text-generation", dtype=name), folder).model
    stored = load_file(folder / "model.safetensors")
    rows = {key: unpack(stored[key], int(stored[key.replace("packed", "shape")][1])) for key in stored if "pack" in key}
    found = {tuple(row.tolist()) for narrow in rows.values() for row in narrow}
    model = build(hf_model, 32)
    quantize_weights(model)
    tied = model.head.full.data_ptr() == model.embedding.data_ptr()
    products = model.products()[:-1] if tied else model.products()
    assert {tuple(row.tolist()) for product in products for row in product.weight} == found
    assert tied == (family == "opt")


@pytest.mark.parametrize(
    ("family", "task"),
    [("bert", "question-answering"), ("roberta", "fill-mask"), ("bloom", "text-generation"), ("t5", "translation")],
)
def test_the_rest_of_a_model_is_as_it_was(family: str, task: str, shipped: Shipped, tiny: Tiny) -> None:
    wide = load(Deployment("x", task), tiny(family, task)).model
    model = load(Deployment("x", task), shipped(family, task)).model
    products = products_of(tiny(family, task)).names
    assert products
    for name, tensor in wide.state_dict().items():
        same = torch.equal(model.state_dict()[name], tensor)
        assert same == (name.removesuffix(".weight") not in products), name
    assert getattr(model.config, "quantization_config", None) is None
    if model.can_generate():
        assert model.generation_config == wide.generation_config


@pytest.mark.parametrize("auto", [True, False])
@pytest.mark.parametrize(("family", "task"), [("llama", "text-generation"), ("bert", "fill-mask")])
def test_others_read_the_same_model(auto: bool, family: str, task: str, shipped: Shipped) -> None:
    """Plain transformers with the package compressed-tensors, by auto class and by the model's own."""
    import transformers

    folder = shipped(family, task)
    ours = load(Deployment("x", task), folder).model
    names = {"text-generation": "AutoModelForCausalLM", "fill-mask": "AutoModelForMaskedLM"}
    cls = getattr(transformers, names[task]) if auto else type(ours)
    theirs, report = cls.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    ids = torch.arange(5, 29)[None]
    with torch.inference_mode():
        assert torch.equal(theirs.eval()(ids).logits, ours(ids).logits)


@pytest.mark.parametrize("kind", ["fp8", "int4"])
def test_others_read_what_is_made_in_other_kinds(kind: Made, tiny: Tiny, tmp_path: Path) -> None:
    """int4 in groups, whose wide form they round to the type of the scales, bfloat16; its head stays as it was."""
    import transformers

    source, target = tiny("llama", "text-generation"), tmp_path / "m"
    shutil.copytree(source, target)
    writer = Writer(source, target, torch.float32, kind)
    writer.write()
    assert writer.losses.products == (15 if kind == "fp8" else 14)
    ours = load(Deployment("x", "text-generation"), target).model
    config = transformers.CompressedTensorsConfig(dequantize=True)
    with warnings.catch_warnings(action="ignore"):  # that the file's config goes first
        theirs = transformers.AutoModelForCausalLM.from_pretrained(
            target, dtype=torch.float32, quantization_config=config
        )
    for name, tensor in theirs.state_dict().items():
        assert torch.allclose(tensor, ours.state_dict()[name], rtol=2**-8, atol=0), name


def test_weights_go_straight_to_the_device_that_is_named(shipped: Shipped) -> None:
    """As the loader asks for on a GPU; the device gets int8, and a float32 copy only of what is widened at once."""
    import transformers

    folder = shipped("llama")
    wanted = load(Deployment("x", "text-generation"), folder).model.state_dict()
    where = {"device_map": {"": torch.device("cpu")}, "dtype": torch.float32, "local_files_only": True}
    found = from_pretrained(transformers.AutoModelForCausalLM, folder, **where).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def test_names_without_the_prefix_of_the_body(tiny: Tiny, tmp_path: Path) -> None:
    """As the published weights of BLOOM: saved from the body alone, loaded with its head."""
    import transformers

    source, target = (Path(shutil.copytree(tiny("bloom", "text-generation"), tmp_path / name)) for name in "ab")
    stored = {name.removeprefix("transformer."): t for name, t in load_file(source / "model.safetensors").items()}
    save_file(stored, source / "model.safetensors", metadata={"format": "pt"})
    writer = Writer(source, target, torch.float32)
    writer.write()
    assert writer.losses.products == 8
    ours = load(Deployment("x", "text-generation"), target).model
    theirs = transformers.AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
    ids = torch.arange(5, 29)[None]
    with torch.inference_mode():
        assert torch.equal(theirs.eval()(ids).logits, ours(ids).logits)


def test_what_others_write_is_read(shipped: Shipped, tmp_path: Path) -> None:
    """Saved again by transformers, with compressed-tensors' own config and its scales in the model's type."""
    import transformers

    folder = shipped("llama")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    theirs.save_pretrained(tmp_path / "again")
    for path in folder.glob("token*"):
        shutil.copy(path, tmp_path / "again")
    ours, before = (
        load(Deployment("x", "text-generation"), each).model.state_dict() for each in (tmp_path / "again", folder)
    )
    assert ours.keys() == before.keys()
    for name, tensor in before.items():
        assert torch.allclose(ours[name], tensor, rtol=2**-8, atol=0), name


def test_what_loads_a_folder_again_widens_it_too(shipped: Shipped) -> None:
    folder = shipped("llama")
    model = load(Deployment("x", "text-generation"), folder).model
    wanted = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    reload(model)
    rank = load_rank(ShardSpec("LlamaForCausalLM", str(folder), "float32", 2, "cpu", 0, 1.0), 1)
    for found in (model, rank):
        assert all(torch.equal(found.state_dict()[name], tensor) for name, tensor in wanted.items())


def test_the_pass_says_that_weights_are_shipped_so(shipped: Shipped, tiny: Tiny) -> None:
    deployment = Deployment("x", "text-generation", limits=Limits(context_length=64))
    card = Hardware("cuda", "NVIDIA H100", (9, 0), 80 << 30, 1, nvcc=True)
    chosen = WeightOnly(StaticDecode(slots=1, max_length=64))
    for folder, told in (
        (shipped("llama"), "int8 weights as shipped"),
        (tiny("llama", "text-generation"), "weights be"),
    ):
        facts = replace(survey(deployment, folder), weight_bytes=13_000_000_000)
        assert told in chosen.applies(facts, card, LATENCY).reason


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:2000])


def drop(part: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        stored = load_file(folder / "model.safetensors")
        del stored[f"model.layers.0.mlp.up_proj.{part}"]
        save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})

    return damage


def otherwise(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= {"format": "marlin-24"}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("damage", "error", "told"),
    [
        (cut, WeightsUnreadable, "cannot be loaded"),
        (drop("weight_scale"), WeightsUnreadable, r"up_proj lacks .*up_proj\.weight_scale"),
        (drop("weight_shape"), WeightsUnreadable, r"up_proj lacks .*up_proj\.weight_shape"),
        (drop("weight_packed"), WeightsUnreadable, "whose other parts are not there"),
        (otherwise, WeightsUnreadable, "marlin-24"),
    ],
)
def test_damage_is_a_sentence(
    damage: Callable[[Path], None], error: type[Exception], told: str, shipped: Shipped
) -> None:
    folder = shipped("llama")
    damage(folder)
    with pytest.raises(error, match=told):
        load(Deployment("x", "text-generation"), folder)


def test_a_task_whose_head_is_missing(shipped: Shipped) -> None:
    with pytest.raises(HeadMissing, match="would be random"):
        load(Deployment("x", "question-answering"), shipped("bert", "fill-mask"))


def test_shards(tiny: Tiny, tmp_path: Path) -> None:
    """File by file; what they hold is what one file holds, and their index names it all."""
    import transformers

    source = tmp_path / "shards"
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny("llama", "text-generation"))
    shutil.copytree(tiny("llama", "text-generation"), source)
    (source / "model.safetensors").unlink()
    model.save_pretrained(source, max_shard_size="60KB")
    assert len(list(source.glob("*.safetensors"))) > 2
    found = []
    for number, folder in enumerate((source, tiny("llama", "text-generation"))):
        target = tmp_path / str(number)
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors*"))
        writer = Writer(folder, target, torch.float32)
        writer.write()
        assert all((target / name).is_file() for name in writer.hashes)
        found.append(load(Deployment("x", "text-generation"), target).model.state_dict())
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(tensor, found[1][name]) for name, tensor in found[0].items())
    index = json.loads((tmp_path / "0" / "model.safetensors.index.json").read_text())
    stored = {name for path in (tmp_path / "0").glob("*.safetensors") for name in load_file(path)}
    assert set(index["weight_map"]) == stored
    sizes = [
        t.numel() * t.element_size() for p in (tmp_path / "0").glob("*.safetensors") for t in load_file(p).values()
    ]
    assert index["metadata"]["total_size"] == sum(sizes)


def test_products_are_linear_layers_of_the_body_and_an_output_matrix_of_its_own(tiny: Tiny) -> None:
    import transformers

    for family, head in (("llama", True), ("gemma", False), ("gpt_neox", True)):
        folder = tiny(family, "text-generation")
        found = products_of(folder)
        model = transformers.AutoModelForCausalLM.from_pretrained(folder)
        linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        assert found.names == linear - (set() if head else {"lm_head"})
        assert found.others == linear - found.names
    assert products_of(tiny("bert", "text-classification")).others == {"classifier"}
