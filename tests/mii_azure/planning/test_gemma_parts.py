"""Parts of Gemma 3n and Gemma 4 that others lack: rows for each layer, experts under a name of their own, types."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from mii_azure.hardware.skus import find_sku
from mii_azure.model.experts import experts_of
from mii_azure.model.families import family_named, find_family
from mii_azure.model.profile import profile
from mii_azure.model.quantizable import is_product
from mii_azure.model.safetensors import Tensor
from mii_azure.planning import expected, latency, memory
from mii_azure.planning.budget import Work
from tests.mii_azure.model.test_profile import described
from tests.mii_azure.planning.test_cached_layers import gemma4
from tests.tiny_causal import tiny_causal, tiny_config

H100, T4, CPU = "Standard_NC40ads_H100_v5", "Standard_NC4as_T4_v3", "Standard_F8s_v2"
FAMILIES = ("gemma3n", "gemma3n_text", "gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text")
_ROWS = 4_697_620_480 // 2  # of E2B: 262,144 rows of 35 layers by 256


def config(family: str, **changes: Any) -> dict[str, Any]:
    made: dict[str, Any] = tiny_config(family, **changes).to_dict()
    return made | {"architectures": ["Gemma4ForCausalLM"]}


@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("family", ["gemma3n_text", "gemma4_text"])
def test_rows_of_layers_are_those_of_the_model(family: str, wrapped: bool) -> None:
    raw = config(family)
    whole = {"model_type": family.removesuffix("_text"), "text_config": raw, "architectures": ["Any"]}
    sizes = {name: weight.numel() for name, weight in tiny_causal(family).named_parameters()}
    [table] = [size for name, size in sizes.items() if name.endswith("embed_tokens_per_layer.weight")]
    told = described(whole if wrapped else raw)
    told = replace(told, weights=told.weights._replace(parameters=sum(sizes.values())))
    assert profile(told).row_parameters == table


def test_a_model_without_such_rows_has_none() -> None:
    assert profile(described(config("gemma4_text", hidden_size_per_layer_input=0))).row_parameters == 0
    assert profile(described(config("gemma3_text"))).row_parameters == 0


def test_rows_are_no_product() -> None:
    """Neither counted narrow nor multiplied."""
    shape = (262_144, 8960)
    assert not is_product(Tensor("model.language_model.embed_tokens_per_layer.weight", "BF16", shape), True)
    assert is_product(Tensor("model.language_model.per_layer_model_projection.weight", "BF16", (8960, 1536)), True)


@pytest.mark.parametrize("instance_type", [H100, T4, CPU])
def test_a_step_reads_no_table_of_rows(instance_type: str) -> None:
    """It takes as long as one of a model without the table, whatever is expected of the instance type."""
    whole = gemma4("E2B", row_parameters=_ROWS)
    without = gemma4("E2B", parameters=whole.parameters - _ROWS)

    def seconds(facts: Any) -> list[float]:
        work = Work(facts, family_named(facts.family, "decoder"), "text-generation")
        placed = memory.fit(work, find_sku(instance_type))
        each = [module.step_seconds(work, placed, 1 << 20, rows) for module in (latency, expected) for rows in (1, 8)]
        return [*each, latency.prefill_seconds(work, placed, 64, 64), expected.prompt_seconds(work, placed, 64, 64)]

    assert seconds(whole) == pytest.approx(seconds(without), rel=1e-3)
    assert min(a / b for a, b in zip(seconds(gemma4("E2B")), seconds(whole), strict=True)) > 1.05


@pytest.mark.parametrize("family", FAMILIES)
def test_types_of_families_that_overflow_in_float16(family: str) -> None:
    """A T4 has no bfloat16, and takes float32."""
    work = Work(gemma4("E2B", family=family), family_named(family, "decoder"), "text-generation")
    for stored in ("bfloat16", "float16"):
        work = work._replace(profile=work.profile.model_copy(update={"dtype": stored}))
        assert memory.choose_dtype(work, find_sku(T4), "auto")[0] == "float32"
        assert memory.choose_dtype(work, find_sku(H100), "auto")[0] == "bfloat16"


def test_experts_of_gemma_4_are_counted_by_its_own_name() -> None:
    changes = {"enable_moe_block": True, "num_experts": 8, "top_k_experts": 2, "moe_intermediate_size": 16}
    made = tiny_config("gemma4_text", **changes)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(made)
    raw, sizes = made.to_dict(), {name: weight.numel() for name, weight in model.named_parameters()}
    held = sum(size for name, size in sizes.items() if ".experts." in name)
    found = experts_of(raw, find_family(raw), made.num_hidden_layers, made.hidden_size, sum(sizes.values()))
    assert held > 0
    assert found == (held, 2 / 8)
