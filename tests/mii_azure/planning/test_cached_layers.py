"""Layers whose heads differ, or that share keys and values: read from a configuration, planned as they are kept."""

from typing import Any

import pytest
import transformers

from mii_azure.hardware.skus import all_skus
from mii_azure.model.cached_layers import CachedLayers, cached_layers
from mii_azure.model.families import find_family
from mii_azure.model.profile import Profile, profile
from mii_azure.model.sizes import disagreements
from mii_azure.planning.budget import Work, is_paged, layer_groups, seen_tokens
from mii_azure.planning.planner import family_named
from scoring.decoder.decoder import Decoder
from scoring.decoder.layer_groups import Kept
from tests.mii_azure.model.test_profile import described
from tests.mii_azure.planning.test_paged_cache import H100, llama, planned, told
from tests.scoring.decoder.test_layer_shapes import MODELS
from tests.tiny_causal import tiny_causal

_SLIDING, _FULL = "sliding_attention", "full_attention"


def published(every: int, layers: int, heads: int, kv_heads: int, **more: Any) -> dict[str, Any]:
    """A text_config as Gemma 4's checkpoints have it."""
    kinds = [_SLIDING if (layer + 1) % every else _FULL for layer in range(layers)]
    sizes = {"num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads}
    return {
        "model_type": "gemma4_text", "head_dim": 256, "global_head_dim": 512, "layer_types": kinds, **sizes, **more
    }  # fmt: skip


_EQUAL = {"attention_k_eq_v": True, "sliding_window": 1024}
GEMMA_4: dict[str, tuple[dict[str, Any], int]] = {
    "E2B": (published(5, 35, 8, 1, num_kv_shared_layers=20, sliding_window=512), 18_432),
    "E4B": (published(6, 42, 8, 2, num_kv_shared_layers=18, sliding_window=512), 57_344),
    "26B-A4B": (published(6, 30, 16, 8, num_global_key_value_heads=2, **_EQUAL), 225_280),
    "31B": (published(6, 60, 32, 16, num_global_key_value_heads=4, **_EQUAL), 901_120),
}


def kept_by_transformers(text: Any) -> list[Kept]:
    """Layers that a configuration of transformers has keep something, sorted."""
    found = []
    for layer, mode, kind in zip(text.per_layer_config, text.kv_sharing_modes, text.layer_types, strict=True):
        window = text.sliding_window if kind == _SLIDING else 0
        found += [Kept(window, layer.num_key_value_heads, layer.head_dim)] if mode != "reuse" else []
    return sorted(found)


@pytest.mark.parametrize("size", GEMMA_4)
@pytest.mark.parametrize("wrapped", [True, False], ids=["gemma4", "gemma4_text"])
@pytest.mark.parametrize("saved", [True, False], ids=["as saved again", "as published"])
def test_layers_are_those_of_transformers(size: str, wrapped: bool, saved: bool) -> None:
    """Both as published, and as transformers saves it, which tells each layer's numbers."""
    text, token_bytes = GEMMA_4[size]
    config = transformers.AutoConfig.for_model(**text)
    raw: dict[str, Any] = config.to_dict() if saved else text
    assert ("per_layer_config" in raw) == saved
    raw = {"model_type": "gemma4", "text_config": raw} if wrapped else raw
    found = cached_layers(raw, config.num_hidden_layers, text["num_key_value_heads"], 256)
    assert sum(own.layers + own.readers for own in found) == config.num_hidden_layers
    assert expanded(found) == kept_by_transformers(config)
    assert 2 * 2 * sum(own.numbers for own in found) == token_bytes


def expanded(found: tuple[CachedLayers, ...]) -> list[Kept]:
    return sorted(Kept(own.window, own.heads, own.head_dim) for own in found for _ in range(own.layers))


@pytest.mark.parametrize("family", ["gemma3n_text", "gemma4_text", "gemma4_unified_text"])
def test_layers_of_default_configurations_are_those_of_transformers(family: str) -> None:
    config = transformers.AutoConfig.for_model(family)
    raw = {"model_type": family, "sliding_window": config.sliding_window}
    first = config.per_layer_config[0]
    found = cached_layers(raw, config.num_hidden_layers, first.num_key_value_heads, first.head_dim)
    assert expanded(found) == kept_by_transformers(config)


def test_layers_that_are_alike_are_not_told() -> None:
    assert cached_layers({"model_type": "gemma3_text", "sliding_window": 512}, 6, 4, 256) == ()
    assert cached_layers({"model_type": "llama"}, 32, 8, 128) == ()


@pytest.mark.parametrize("name", MODELS)
def test_a_plan_counts_and_groups_what_the_engine_keeps(name: str) -> None:
    family, changes = MODELS[name]
    model = tiny_causal(family, **changes)
    facts = profile(described(model.config.to_dict() | {"architectures": [type(model).__name__], "dtype": "float32"}))
    decoder = Decoder(model, 2, 128)
    assert facts.kv_bytes_per_token == decoder.model.kv_bytes_per_token()
    groups = layer_groups(work(facts), 128)
    assert (groups.size, groups.windows, groups.shapes) == (
        decoder.groups.size, decoder.groups.windows, decoder.groups.shapes
    )  # fmt: skip
    stored = sum(cache[0, :, 0].nbytes * groups.layers(shape)
                 for shape in set(groups.shapes) for cache in decoder.state.stores[shape])  # fmt: skip
    assert stored >= groups.size * 2 * 64 * 4  # a block has room for the largest group


@pytest.mark.parametrize("name", [name for name in MODELS if "parts" not in name])
def test_weights_of_layers_that_differ_do_not_disagree_with_the_configuration(name: str) -> None:
    """Queries of wider heads, and MLPs twice as wide where layers share."""
    from mii_azure.model.safetensors import Tensor

    family, changes = MODELS[name]
    model = tiny_causal(family, **changes)
    tensors = tuple(Tensor(key, "F32", tuple(value.shape)) for key, value in model.state_dict().items())
    config = model.config.to_dict()
    assert list(disagreements(tensors, config, find_family(config | {"architectures": [type(model).__name__]}))) == []
    narrow = tuple(each._replace(shape=(7, *each.shape[1:])) for each in tensors if "5.self_attn.q_proj" in each.name)
    assert len(list(disagreements(narrow, config, find_family(config)))) >= 1


def work(facts: Profile) -> Work:
    return Work(facts, family_named(facts.family, "decoder"), "text-generation")


def gemma4(size: str, **changes: Any) -> Profile:
    text, token_bytes = GEMMA_4[size]
    layers = text["num_hidden_layers"]
    shape = {
        "architecture": "Gemma4ForConditionalGeneration", "family": "gemma4", "parameters": 5_104_297_504,
        "layers": layers, "hidden_size": 1536, "heads": 8, "kv_heads": text["num_key_value_heads"], "head_dim": 256,
        "kv_bytes_per_token": token_bytes, "window": 512, "windowed_layers": layers * 4 // 5,
        "cached_layers": cached_layers({"text_config": text}, layers, text["num_key_value_heads"], 256),
    }  # fmt: skip
    return llama(**(shape | changes))


def test_heads_of_512_have_a_paged_cache_on_a_gpu_and_wider_ones_have_none() -> None:
    facts = gemma4("E2B")
    assert facts.widest_head == 512
    assert is_paged(work(facts), all_skus()[H100], 1)
    made = planned(facts, H100)
    [decision] = [each for each in made.passes if each.name == "static_decode"]
    assert decision.take
    assert made.kv_cache_tokens > 100_000
    wide = facts.model_copy(update={"cached_layers": (CachedLayers(layers=35, heads=1, head_dim=576),)})
    assert not is_paged(work(wide), all_skus()[H100], 1)
    [decision] = [each for each in planned(wide, H100).passes if each.name == "static_decode"]
    assert "Heads of 576 exceed the attention kernel's 512" in decision.reason


def test_heads_are_not_the_hidden_size_by_their_number() -> None:
    """Gemma 3 4B: 8 heads of 256 over a hidden size of 2560."""
    [decision] = [each for each in planned(llama(hidden_size=2560, heads=8, kv_heads=4, head_dim=256), H100).passes
                  if each.name == "static_decode"]  # fmt: skip
    assert decision.take


def test_the_plan_tells_what_layers_keep() -> None:
    reason = told(planned(gemma4("E2B"), H100), "cache of a token")
    assert "3 with 1 key-value heads of 512, 12 with 1 key-value heads of 256 that see 512 tokens" in reason
    assert "20 more read what the last of these keep, and keep none." in reason


def test_a_step_reads_what_layers_share_as_often_as_they_are() -> None:
    facts = gemma4("E2B")
    tokens = 4096
    read = 2 * 2 * (7 * 512 * tokens + 28 * 256 * 512)
    assert seen_tokens(work(facts), tokens) == read // facts.kv_bytes_per_token
