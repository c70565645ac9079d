"""Floors against published anchors and against counted arithmetic."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from mii_azure.hardware import roofline


@pytest.mark.parametrize(
    ("gigabytes", "terabytes_per_s", "milliseconds"),
    [(2.63, 2.039, 1.29), (12.1, 3.35, 3.6), (14.1, 2.039, 6.9)],
)
def test_decode_floor_is_that_of_the_published_tables(
    gigabytes: float, terabytes_per_s: float, milliseconds: float
) -> None:
    floor = roofline.decode_floor(gigabytes * 1e9, 0, terabytes_per_s * 1e12)
    assert floor * 1e3 == pytest.approx(milliseconds, rel=0.02)


def test_encoder_floor_of_bert_large_is_that_of_the_published_table() -> None:
    work = roofline.flops(302_000_000, 24, 1024, 128, 128)
    assert roofline.forward_floor(2 * 302e6, work, 3.35e12, 989e12) * 1e3 == pytest.approx(0.18, abs=0.005)


def test_flops_are_those_that_torch_counts() -> None:
    config = transformers.BertConfig(
        num_hidden_layers=2, hidden_size=32, num_attention_heads=2, intermediate_size=64, attn_implementation="eager"
    )
    model = transformers.BertModel(config, add_pooling_layer=False).eval()
    matrices = sum(p.numel() for name, p in model.encoder.named_parameters() if p.ndim == 2)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.ones((3, 16), dtype=torch.long))
    counted = counter.get_total_flops()
    assert roofline.flops(matrices, 2, 32, 3 * 16, 16) == counted
