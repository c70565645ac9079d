"""Windows of attention: read from a configuration as transformers reads it, and planned as the engine keeps them."""

from typing import Any

import pytest
import transformers

from mii_azure.hardware.skus import load_data
from mii_azure.model.profile import Profile
from mii_azure.model.windows import windows
from mii_azure.planning.budget import Work, layer_groups, pool_blocks
from mii_azure.planning.planner import family_named
from scoring.decoder.block_tables import BlockTables
from scoring.decoder.decoder import Decoder
from scoring.decoder.layer_groups import STEP_TOKENS
from scoring.errors import DeviceFull
from tests.mii_azure.planning.test_paged_cache import A10, H100, llama, planned, told
from tests.scoring.decoder.test_layer_groups import MIXED, WINDOW, mixed

LAYERS = 34


def gemma(**changes: object) -> Profile:
    """Facts of Gemma-3-4B."""
    shape = {
        "architecture": "Gemma3ForCausalLM",
        "family": "gemma3_text",
        "parameters": 3_880_099_328,
        "layers": LAYERS,
        "hidden_size": 2560,
        "heads": 8,
        "kv_heads": 4,
        "head_dim": 256,
        "vocab_size": 262_208,
        "kv_bytes_per_token": 2 * LAYERS * 4 * 256 * 2,
        "window": 1024,
        "windowed_layers": 29,
    }
    return llama(**(shape | changes))


# --- what a configuration says


@pytest.mark.parametrize("family", sorted(load_data("model_types")["windows"]))
def test_kinds_that_a_configuration_leaves_out_are_those_of_transformers(family: str) -> None:
    config = transformers.AutoConfig.for_model(family)
    text = config.get_text_config(decoder=True)
    layers = text.num_hidden_layers
    if text is config:
        config = transformers.AutoConfig.for_model(family, sliding_window=64)
    else:
        text.sliding_window = 64
    text = config.get_text_config(decoder=True)
    kinds = getattr(text, "layer_types", None) or ["sliding_attention"] * layers
    count = sum(kind == "sliding_attention" for kind in kinds)
    asked: dict[str, Any] = {"model_type": family, "sliding_window": 64}
    assert abs(windows(asked, layers)[1] - count) <= (1 if family.startswith("gemma4") else 0)  # its last sees all
    assert windows(asked | {"layer_types": kinds}, layers) == (64, count)
    assert windows(asked | {"sliding_window": None}, layers) == (0, 0)


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"model_type": "llama"}, (0, 0)),
        ({"model_type": "qwen2", "sliding_window": 64, "use_sliding_window": False, "max_window_layers": 4}, (0, 0)),
        ({"model_type": "qwen2", "sliding_window": 64, "use_sliding_window": True, "max_window_layers": 4}, (64, 2)),
        ({"model_type": "qwen2", "sliding_window": 64}, (0, 0)),
        ({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", "sliding_window": 64}}, (64, 5)),
        ({"model_type": "exaone4", "sliding_window": 64, "sliding_window_pattern": 3}, (64, 4)),
        ({"model_type": "gpt_neo", "window_size": 64, "attention_types": [[["global", "local"], 3]]}, (64, 3)),
        ({"model_type": "nobodys", "sliding_window": 64}, (0, 0)),
        ({"model_type": "gemma2", "sliding_window": "wide", "layer_types": 7}, (0, 0)),
    ],
)
def test_forms_of_configurations(config: dict[str, Any], found: tuple[int, int]) -> None:
    assert windows(config, 6) == found


@pytest.mark.parametrize("family", MIXED)
def test_a_plan_groups_layers_as_the_engine_does(family: str) -> None:
    model = mixed(family)
    decoder = Decoder(model, 2, 1024)
    window, count = windows(model.config.to_dict(), len(decoder.model.layers))
    own = [layer.window for layer in decoder.model.kept]
    assert (window, count) == (WINDOW, sum(map(bool, own)))
    heads = {"kv_heads": decoder.model.kv_heads, "head_dim": decoder.model.head_dim}
    work = _work(gemma(layers=len(own), window=window, windowed_layers=count, **heads))
    groups = layer_groups(work, 1024)
    assert (groups.size, groups.windows) == (decoder.groups.size, decoder.groups.windows)


# --- what is planned of them


def _work(profile: Profile) -> Work:
    return Work(profile, family_named(profile.family, "decoder"), "text-generation")


def test_several_times_as_many_long_requests_fit() -> None:
    made, whole = planned(gemma()), planned(gemma(window=0, windowed_layers=0))
    now, before = dict(made.at_once), dict(whole.at_once)
    assert now[32_768] > 5 * before[32_768] > 50
    assert now[131_072] > 6 * before[131_072]
    assert now[2048] >= before[2048]
    assert whole.kv_cache_tokens * 0.96 < made.kv_cache_tokens < whole.kv_cache_tokens  # a place in 35 stays empty
    assert made.memory.kv_cache == pytest.approx(whole.memory.kv_cache, rel=0.01)


@pytest.mark.parametrize("length", [2048, 8192, 32_768])
def test_as_many_requests_fit_as_the_engine_holds(length: int) -> None:
    """One after another, each prompt in the longest pieces, over the tables of a pool as planned."""
    made = planned(gemma(), A10)
    groups = layer_groups(_work(made.profile), made.context_length)
    blocks = pool_blocks(groups, made.kv_cache_tokens)
    tables = BlockTables(300, -(-length // 64), blocks, False, groups.windows)
    held, piece = 0, STEP_TOKENS["cuda"]
    try:
        for held in range(300):
            tables.open(held, (), None)
            for end in range(min(piece, length), length + 1, piece):
                tables.check([(held, end)])
                tables.reserve(held, end)
                tables.advance(held, end)
    except DeviceFull:
        pass
    [planned_for] = [count for tokens, count in made.at_once if tokens == length]
    # A window that begins within a page takes one more, which the plan counts.
    assert planned_for <= min(256, held) <= 1.06 * planned_for


def test_a_context_longer_than_the_pool_is_served_where_windows_allow() -> None:
    made = planned(gemma(), A10, memory_share=0.6)
    assert made.kv_cache_tokens < made.context_length <= 131_072
    assert made.at_once[-1][0] == made.context_length
    assert made.at_once[-1][1] >= 1
    assert planned(gemma(window=0, windowed_layers=0), A10, memory_share=0.6).context_length < made.context_length


def test_a_plan_tells_what_windows_keep_or_why_not() -> None:
    found = told(planned(gemma()), "layers with a window")
    assert found.startswith("29 of 34, 1,024 tokens: They keep no more of a sequence than that")
    assert found.endswith("The others keep all. Pages hold 5 layers: 1 of 35 places stay empty.")
    short = told(planned(gemma(), context_length=1024), "layers with a window")
    assert short.endswith("In a context of 1,024 tokens that saves too little: they keep all, as the others do.")
    assert "The others" not in told(planned(llama(window=4096, windowed_layers=28)), "layers with a window")
    assert not [each for each in planned(llama(), H100).decisions if each.what == "layers with a window"]
