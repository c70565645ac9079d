"""Plans of models whose layers keep recurrent states: their bytes, and what they rule out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

import mii_azure
from mii_azure import errors
from mii_azure.model.states import States, states
from mii_azure.platform.limits import MAX_SEQUENCES
from scoring.decoder.decoder import Decoder
from scoring.passes.families import RECURRENT
from tests.conftest import Tiny
from tests.tiny_causal import tiny_causal, tiny_config

TASK = "text-generation"
CPU, GPU = "Standard_F4s_v2", "Standard_NC40ads_H100_v5"


def written(family: str, tiny: Tiny, folder: Path, **sizes: Any) -> Path:
    """Folder of a tiny model with the tokenizer of another."""
    tokenizer = AutoTokenizer.from_pretrained(tiny("llama", TASK))
    tiny_causal(family, vocab_size=len(tokenizer), **sizes).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def reasons(plan: Any) -> dict[str, str]:
    return {each.what: f"{each.value}: {each.reason}" for each in plan.decisions}


@pytest.mark.parametrize(
    "family", ["bamba", "kimi_linear", "lfm3", "mamba", "nemotron_h", "qwen3_next", "zamba2", "zaya"]
)
def test_states_are_as_large_as_config_json_tells(family: str) -> None:
    decoder = Decoder(tiny_causal(family), slots=1, max_length=64)
    config = tiny_config(family)
    told = states(config.to_dict(), family, config.num_hidden_layers)
    assert told is not None
    assert decoder.recurrent is not None
    assert told.bytes == decoder.recurrent.slot_bytes
    assert told.attending == len(decoder.model.layers)


def test_every_type_has_states_and_no_other() -> None:
    for family in RECURRENT:
        config = tiny_config(family).get_text_config(decoder=True)
        told = states(config.to_dict(), family, config.num_hidden_layers)
        assert told is not None
        assert told.bytes > 0, family
    assert states(tiny_config("llama").to_dict(), "llama", 2) is None


@pytest.mark.parametrize(
    ("family", "config", "attending", "keeping"),
    [
        ("nemotron_h", {"hybrid_override_pattern": "MM-M*-"}, 1, 3),
        ("qwen3_next", {"full_attention_interval": 3}, 2, 4),
        ("kimi_linear", {"linear_attn_config": {"full_attn_layers": [4], "kda_layers": [1, 2, 3, 5, 6]}}, 1, 5),
        ("bamba", {"attn_layer_indices": [2]}, 1, 5),
        ("jamba", {"attn_layer_period": 3, "attn_layer_offset": 1}, 2, 4),
        ("lfm2", {"full_attn_idxs": [2, 5]}, 2, 4),
        ("falcon_h1", {}, 6, 6),
        ("mamba2", {}, 0, 6),
    ],
)
def test_layers_are_known_in_each_way_that_they_are_told(
    family: str, config: dict[str, Any], attending: int, keeping: int
) -> None:
    told = states(config, family, 6)
    assert isinstance(told, States)
    assert (told.attending, told.keeping) == (attending, keeping)


def test_a_plan_tells_the_states_and_what_they_rule_out(tiny: Tiny, tmp_path: Path) -> None:
    widths = {"linear_key_head_dim": 128, "linear_value_head_dim": 128}
    model = written("qwen3_5_text", tiny, tmp_path / "model", linear_num_value_heads=32, **widths)
    plan = mii_azure.plan(TASK, str(model), CPU, speculation="ngram", max_concurrency=8)
    assert plan.profile.kv_bytes_per_token == 2 * 2 * 8 * 4  # of the one layer with attention
    size = 4 * (32 * 128 * 128 + 4 * (2 * 2 + 32) * 128)  # of 32 matrices, and four inputs of a convolution
    assert plan.profile.state_bytes == size
    told = reasons(plan)
    assert told["pass static_decode"].startswith("yes: Generic tier")
    assert "no prefix is reused" in told["pass static_decode"]
    assert told["recurrent states"].startswith("2.2 MB a sequence: They are of whole sequences")
    assert "cannot be wound back" in told["speculation"]
    more = mii_azure.plan(TASK, str(model), CPU, max_concurrency=9).memory.kv_cache - plan.memory.kv_cache
    assert more >= size
    on_gpu = mii_azure.plan(TASK, str(model), GPU, max_concurrency=8)
    assert reasons(on_gpu)["pass static_decode"].startswith("yes: Generic tier")
    assert reasons(on_gpu)["recurrent states"] == told["recurrent states"]
    assert "cannot be wound back" in reasons(on_gpu)["speculation"]
    assert on_gpu.slots == 8
    whole = written("mamba", tiny, tmp_path / "whole")
    assert "A prompt is one step" in reasons(mii_azure.plan(TASK, str(whole), CPU))["recurrent states"]


@pytest.mark.parametrize("family", ["qwen3_5_text", "mamba"])
def test_on_a_gpu_states_take_half_of_what_weights_leave_and_no_more(family: str, tiny: Tiny, tmp_path: Path) -> None:
    """States of a sequence as large as no model's, so that memory bounds their number; a step computes on copies."""
    wide = {"linear_num_value_heads": 1024, "linear_key_head_dim": 512, "linear_value_head_dim": 512}
    wide = wide if family == "qwen3_5_text" else {"state_size": 200_000}
    folder = written(family, tiny, tmp_path / "model")
    told = json.loads((folder / "config.json").read_text(encoding="utf-8")) | wide
    (folder / "config.json").write_text(json.dumps(told), encoding="utf-8")
    found = mii_azure.plan(TASK, str(folder), GPU)
    size, memory = 2 * found.profile.state_bytes, found.memory
    assert 1 < found.slots < MAX_SEQUENCES
    left = memory.available - memory.weights - memory.context
    assert left / 2 - 2 * size < found.slots * size <= left / 2
    assert found.slots * size <= memory.kv_cache <= left
    assert found.outlook is not None
    moved = found.outlook.per_second * 2 * found.profile.state_bytes  # a step reads each, and writes it
    assert moved < 3.9e12  # bytes that an H100 NVL reads a second
    fewer = mii_azure.plan(TASK, str(folder), GPU, max_concurrency=found.slots - 1)
    assert fewer.slots == found.slots - 1


def test_such_a_model_drafts_for_none(tiny: Tiny, tmp_path: Path) -> None:
    base, draft = tmp_path / "base", written("lfm2", tiny, tmp_path / "draft")
    shutil.copytree(tiny("llama", TASK), base)
    with pytest.raises(errors.DraftUnusable, match="cannot be wound back to the first wrong token"):
        mii_azure.plan(TASK, str(base), CPU, draft_model=str(draft))
