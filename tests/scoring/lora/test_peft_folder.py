"""What an adapter's config and the names of its tensors mean."""

from __future__ import annotations

import math
from typing import Any

import pytest

from scoring.lora.peft_folder import UnservedAdapter, describe, require_products

SHAPES = {"base_model.model.x.q.lora_A.weight": (4, 8), "base_model.model.x.q.lora_B.weight": (6, 4)}


@pytest.mark.parametrize(
    ("config", "scaling"),
    [
        ({"lora_alpha": 8}, 2.0),
        ({"lora_alpha": 8, "use_rslora": True}, 8 / math.sqrt(4)),
        ({"lora_alpha": 8, "alpha_pattern": {"q": 2}}, 0.5),
        ({"lora_alpha": 8, "alpha_pattern": {"x.q": 2, "q": 4}}, 0.5),  # the first that fits
        ({"lora_alpha": 8, "alpha_pattern": {"k": 2}}, 2.0),
    ],
    ids=str,
)
def test_factors_are_those_of_peft(config: dict[str, Any], scaling: float) -> None:
    (product,) = describe({"peft_type": "LORA", "r": 4} | config, SHAPES).products
    assert (product.module, product.rank, product.inputs, product.outputs) == ("x.q", 4, 8, 6)
    assert product.scaling == scaling


def test_tensors_held_whole_are_named_as_the_base_names_them() -> None:
    whole = {"base_model.model.head.weight": (2, 6), "base_model.model.x.q.base_layer.bias": (6,)}
    found = describe({"peft_type": "LORA", "r": 4}, SHAPES | whole).whole
    assert found == {
        "head.weight": "base_model.model.head.weight",
        "x.q.bias": "base_model.model.x.q.base_layer.bias",
    }


def test_a_copy_of_what_a_product_changes_is_not_taken_for_the_whole() -> None:
    copy = {"base_model.model.x.q.base_layer.weight": (6, 8)}  # taken for the whole, it undid the product
    found = describe({"peft_type": "LORA", "r": 4}, SHAPES | copy)
    assert (found.whole, found.copies) == ({}, {"x.q.weight": "base_model.model.x.q.base_layer.weight"})
    with pytest.raises(UnservedAdapter, match=r"holds x\.q\.weight whole"):
        require_products(found)


def test_convolutions_are_refused() -> None:
    shapes = {name: (*shape, 1, 1) for name, shape in SHAPES.items()}
    with pytest.raises(UnservedAdapter, match="convolutions"):
        describe({"peft_type": "LORA", "r": 4}, shapes)
