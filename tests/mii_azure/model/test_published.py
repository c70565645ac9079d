"""Quantised checkpoints: planned from headers with the sizes they have on disk and in memory, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from mii_azure.errors import NotAvailable, WeightsCorrupt
from mii_azure.model.safetensors import INPUTS
from mii_azure.model.source import resolve
from mii_azure.planning.planner import plan
from tests.conftest import Tiny
from tests.published import PUBLISHED, publish


@pytest.mark.parametrize("method", sorted(PUBLISHED))
def test_a_checkpoint_has_its_size_on_disk_and_that_of_a_wide_model_in_memory(
    method: str, tiny: Tiny, tmp_path: Path
) -> None:
    source, target = tiny("llama", "text-generation"), tmp_path / "m"
    publish(source, target, method)
    wide, found = resolve(str(source)).weights, resolve(str(target)).weights
    assert (found.parameters, found.dtype) == (wide.parameters, "float32")
    assert found.bytes == (target / "model.safetensors").stat().st_size
    assert found.published == PUBLISHED[method][0]["quant_method"]
    told = [[each for each in weights.compared if each.name.endswith(INPUTS)] for weights in (found, wide)]
    assert told[0] == told[1]
    assert told[0]


def test_the_plan_says_how_it_is_served_and_what_that_costs(tiny: Tiny, tmp_path: Path) -> None:
    publish(tiny("llama", "text-generation"), tmp_path / "m", "awq")
    made = plan("text-generation", str(tmp_path / "m"), "Standard_NC40ads_H100_v5")
    assert (made.profile.shipped, made.profile.published) == ("int4", "awq")
    (told,) = [each for each in made.decisions if each.what == "weights"]
    size = (tmp_path / "m" / "model.safetensors").stat().st_size
    assert told.value == f"int4, {size / 1e6:,.1f} MB"
    assert f"awq; widened to {made.dtype}" in told.reason
    assert f"{made.memory.weights / 1e6:,.1f} MB in memory" in told.reason


@pytest.mark.parametrize("told", [{"quant_method": "aqlm"}, {"quant_method": "gptq", "bits": 3}, {}])
def test_a_quantisation_that_nobody_knows(told: dict[str, object], tiny: Tiny, tmp_path: Path) -> None:
    publish(tiny("llama", "text-generation"), tmp_path / "m", "gptq")
    path = tmp_path / "m" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": told}))
    with pytest.raises(NotAvailable, match="not read here") as caught:
        resolve(str(tmp_path / "m"))
    assert "unquantised model" in caught.value.hint


def test_a_checkpoint_that_misses_scales(tiny: Tiny, tmp_path: Path) -> None:
    publish(tiny("llama", "text-generation"), tmp_path / "m", "w4a16")
    path = tmp_path / "m" / "model.safetensors"
    stored = load_file(path)
    del stored["model.layers.1.self_attn.k_proj.weight_scale"]
    save_file(stored, path)
    with pytest.raises(WeightsCorrupt, match=r"k_proj lacks model\.layers\.1\.self_attn\.k_proj\.weight_scale"):
        plan("text-generation", str(tmp_path / "m"))


def test_quantised_weights_in_pickle(tiny: Tiny, tmp_path: Path) -> None:
    publish(tiny("llama", "text-generation"), tmp_path / "m", "gptq")
    (tmp_path / "m" / "model.safetensors").rename(tmp_path / "m" / "pytorch_model.bin")
    with pytest.raises(NotAvailable, match="stored as pickle"):
        resolve(str(tmp_path / "m"), allow_pickle=True)
