"""Adapters that `generate` merges: the same weights as peft's, named with their hash, or refused by what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import mii_azure
from mii_azure import errors
from scoring.config import Deployment
from tests.tiny_adapters import tiny_adapter
from tests.tiny_models import load_tiny

# peft asks for what transformers is about to rename
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

Tiny = Callable[[str, str], Path]

LLAMA = ("q_proj", "v_proj", "down_proj")


@pytest.mark.parametrize(
    ("family", "task", "targets"),
    [
        ("llama", "text-generation", LLAMA),
        ("gpt2", "text-generation", ("c_attn", "c_proj")),  # Conv1D, whose weights are stored the other way round
        ("bert", "text-classification", ("query", "value")),
    ],
)
def test_merged_weights_are_those_of_peft(
    tiny: Tiny, tmp_path: Path, family: str, task: str, targets: tuple[str, ...]
) -> None:
    peft = pytest.importorskip("peft")
    base = tiny(family, task)
    turned = family == "gpt2"
    adapter = tiny_adapter(base, task, tmp_path / "mine", targets, fan_in_fan_out=turned, use_rslora=True)
    bundle = mii_azure.generate(task, str(base), "merged", output=tmp_path / "bundle", adapter=str(adapter))
    plain = peft.PeftModel.from_pretrained(load_tiny(base, task)[0], adapter).eval()
    ids = torch.arange(3, 20)[None]
    with torch.inference_mode():
        unmerged = plain(input_ids=ids).logits
        expected = plain.merge_and_unload()
        own = load_tiny(bundle / "model", task)[0].eval()
        assert torch.allclose(own(input_ids=ids).logits, unmerged, atol=1e-3, rtol=1e-4)
        assert not torch.allclose(load_tiny(base, task)[0].eval()(input_ids=ids).logits, unmerged, atol=0.1)
    found = own.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in expected.state_dict().items())


def test_plan_and_metadata_name_the_adapter(tiny: Tiny, tmp_path: Path) -> None:
    base = tiny("llama", "text-generation")
    adapter = tiny_adapter(base, "text-generation", tmp_path / "mine", LLAMA)
    first = mii_azure.generate("text-generation", str(base), "one", output=tmp_path / "a", adapter=str(adapter))
    again = mii_azure.generate("text-generation", str(base), "one", output=tmp_path / "b", adapter=str(adapter))
    assert (first / "manifest.json").read_bytes() == (again / "manifest.json").read_bytes()
    (told,) = Deployment.read(first / "code" / "deployment.json").adapters
    assert (told.name, told.rank, told.merged) == ("mine", 4, True)
    assert told.sha256 in (first / "plan.md").read_text(encoding="utf-8")


def test_tensors_held_whole_take_the_place_of_the_base(tiny: Tiny, tmp_path: Path) -> None:
    base = tiny("bert", "text-classification")
    adapter = tiny_adapter(base, "text-classification", tmp_path / "mine", ("query",), modules_to_save=["classifier"])
    path = adapter / "adapter_model.safetensors"
    head = torch.full_like(load_file(base / "model.safetensors")["classifier.weight"], 0.5)
    save_file(load_file(path) | {"base_model.model.classifier.weight": head}, path)
    bundle = mii_azure.generate("text-classification", str(base), "one", output=tmp_path / "b", adapter=str(adapter))
    assert torch.equal(load_file(bundle / "model" / "model.safetensors")["classifier.weight"], head)


def test_an_output_matrix_is_merged_beside_the_copy_that_peft_keeps(tiny: Tiny, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    base, task, adapter = tiny("llama", "text-generation"), "text-generation", tmp_path / "mine"
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "lm_head"], init_lora_weights=False)
    with torch.random.fork_rng(devices=[]), pytest.warns(UserWarning, match="save_embedding_layers"):
        torch.manual_seed(5)
        peft.get_peft_model(load_tiny(base, task)[0], config).save_pretrained(adapter)
    path, copy = adapter / "adapter_model.safetensors", "base_model.model.lm_head.base_layer.weight"
    tensors = load_file(path)
    assert copy in tensors
    bundle = mii_azure.generate(task, str(base), "one", output=tmp_path / "b", adapter=str(adapter))
    plain = peft.PeftModel.from_pretrained(load_tiny(base, task)[0], adapter).merge_and_unload().state_dict()
    own, before = load_tiny(bundle / "model", task)[0].state_dict(), load_tiny(base, task)[0].state_dict()
    assert all(torch.equal(value, own[name]) for name, value in plain.items())
    assert not torch.equal(own["lm_head.weight"], before["lm_head.weight"])
    save_file(tensors | {copy: tensors[copy] + 1}, path)
    assert _refused(tmp_path, base, adapter, "with other numbers than the base's")


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"peft_type": "IA3"}, "of the kind 'IA3'"),
        ({"use_dora": True}, "with use_dora"),
        ({"a_field_of_tomorrow": 1}, "with a_field_of_tomorrow"),
        ({"init_lora_weights": "pissa"}, "changes the base's own weights"),
        ({"rank_pattern": {"q_proj": 8}}, "of rank 4, and adapter_config.json says 8"),
        ({"alpha_pattern": {".*(a+)+": 8}}, "has the expression"),
        ({"lora_alpha": "many"}, "lora_alpha should be a number"),
        ({"r": 0}, "r is 0"),
    ],
    ids=str,
)
def test_adapters_that_mean_something_else_are_refused(
    tiny: Tiny, tmp_path: Path, config: dict[str, Any], sentence: str
) -> None:
    base = tiny("llama", "text-generation")
    adapter = tiny_adapter(base, "text-generation", tmp_path / "mine", LLAMA, **config)
    assert _refused(tmp_path, base, adapter, sentence)


def test_rank_and_alpha_patterns_are_followed(tiny: Tiny, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    base = tiny("llama", "text-generation")
    adapter = tiny_adapter(
        base, "text-generation", tmp_path / "mine", LLAMA, r=8, rank_pattern=dict.fromkeys(LLAMA, 4),
        alpha_pattern={"layers.0.self_attn.q_proj": 3, "down_proj": 5},
    )  # fmt: skip
    bundle = mii_azure.generate("text-generation", str(base), "one", output=tmp_path / "b", adapter=str(adapter))
    plain = peft.PeftModel.from_pretrained(load_tiny(base, "text-generation")[0], adapter).merge_and_unload()
    own = load_tiny(bundle / "model", "text-generation")[0].state_dict()
    assert all(torch.equal(value, own[name]) for name, value in plain.state_dict().items())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: {k.replace("lora_A", "lora_embedding_A"): v for k, v in t.items()}, "an adapter of an embedding"),
        (lambda t: {k.replace("base_model.model.", ""): v for k, v in t.items()}, "no name that peft gives"),
        (lambda t: {k: v for k, v in t.items() if "lora_B" not in k}, "beside it"),
        (lambda t: {k.replace("layers.0", "layers.7"): v for k, v in t.items()}, "layers.7.self_attn.q_proj.weight"),
        (lambda t: {k: v[:, :-1].contiguous() if "lora_A" in k else v for k, v in t.items()}, "for a base whose"),
        (lambda t: {k: v.to(torch.int8) for k, v in t.items()}, "of the type I8"),
        (lambda t: {}, "holds no lora_A"),
    ],
    ids=["embedding", "names", "half", "no such layer", "another width", "integers", "empty"],
)
def test_tensors_that_do_not_fit_are_refused(tiny: Tiny, tmp_path: Path, change: Any, sentence: str) -> None:
    base = tiny("llama", "text-generation")
    adapter = tiny_adapter(base, "text-generation", tmp_path / "mine", ("q_proj",))
    path = adapter / "adapter_model.safetensors"
    save_file(change(load_file(path)), path)
    assert _refused(tmp_path, base, adapter, sentence)


def test_files_that_are_no_adapter(tiny: Tiny, tmp_path: Path) -> None:
    base = tiny("llama", "text-generation")
    assert _refused(tmp_path, base, tmp_path / "nowhere", "is no folder")
    assert _refused(tmp_path, base, base, "has no adapter_config.json")
    adapter = tiny_adapter(base, "text-generation", tmp_path / "mine", LLAMA)
    weights = adapter / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-3])
    assert _refused(tmp_path, base, adapter, "is damaged", errors.WeightsCorrupt)
    weights.rename(adapter / "adapter_model.bin")
    assert _refused(tmp_path, base, adapter, "pickle", errors.PickleRefused)
    (adapter / "adapter_config.json").write_text("[]", encoding="utf-8")
    assert _refused(tmp_path, base, adapter, "not a JSON object")


def test_a_sum_that_is_not_finite_leaves_nothing_behind(tiny: Tiny, tmp_path: Path) -> None:
    base = tiny("llama", "text-generation")
    adapter = tiny_adapter(base, "text-generation", tmp_path / "mine", ("q_proj",))
    path = adapter / "adapter_model.safetensors"
    save_file({name: value / 0 for name, value in load_file(path).items()}, path)
    assert _refused(tmp_path, base, adapter, "is not finite once mine is merged", errors.WeightsCorrupt)


def test_a_quantised_base_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    base = tiny("llama", "text-generation")
    adapter = tiny_adapter(base, "text-generation", tmp_path / "mine", LLAMA)
    narrow = mii_azure.generate("text-generation", str(base), "narrow", output=tmp_path / "n", quantise="int8")
    assert _refused(tmp_path, narrow / "model", adapter, "are quantised")
    with pytest.raises(errors.SpecError, match="from that bundle's model/"):
        mii_azure.generate("text-generation", str(base), "x-y", adapter=str(adapter), quantise="int8")
    merged = mii_azure.generate("text-generation", str(base), "one", output=tmp_path / "m", adapter=str(adapter))
    both = mii_azure.generate("text-generation", str(merged / "model"), "both", output=tmp_path / "q", quantise="int8")
    assert json.loads((both / "code" / "deployment.json").read_text(encoding="utf-8"))["quantisation"]


def _refused(
    tmp_path: Path, base: Path, adapter: Path, sentence: str, error: type[Exception] = errors.AdapterUnusable
) -> str:
    """Remedy of the refusal, after which nothing is left behind."""
    with pytest.raises(error) as caught:
        mii_azure.generate("text-generation", str(base), "refused", output=tmp_path / "none", adapter=str(adapter))
    assert sentence in str(caught.value)
    assert not (tmp_path / "none").exists()
    assert not list(tmp_path.glob(".none*"))
    return str(getattr(caught.value, "hint", ""))
