"""Layers whose heads differ, and layers that read another's keys and values, in the generic tier on a CPU."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from scoring.decoder.block_pool import BLOCK
from scoring.decoder.decoder import Decoder
from scoring.decoder.generic.interface import MaskFunction
from scoring.decoder.generic.probe import CallRecorder, Unlike, _check_kernels
from scoring.decoder.kv_cache import FP8
from scoring.decoder.layer_groups import Kept, group_layers, of_size
from scoring.decoder.pool_size import block_bytes
from scoring.decoder.verify import errors, reference
from scoring.model.info import facts_of
from tests.scoring.conftest import Served
from tests.scoring.decoder.as_generate import check_as_generate
from tests.scoring.decoder.company_of_64 import check_company_of_64
from tests.scoring.decoder.test_adapters import prompt
from tests.scoring.decoder.test_paged_cache import check_greedy, steps
from tests.tiny_causal import tiny_causal

_LARGE = {
    "num_kv_shared_layers": 0,
    "hidden_size_per_layer_input": 0,
    "use_double_wide_mlp": False,
    "attention_k_eq_v": True,
    "num_global_key_value_heads": 1,
    "use_bidirectional_attention": "vision",
}
#: As Gemma 4's sizes are: layers that share, keys that are values, experts; and its other type, and Gemma 3n.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "E2B": ("gemma4_text", {}),
    "31B": ("gemma4_text", _LARGE),
    "26B-A4B": (
        "gemma4_text",
        _LARGE | {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 16},
    ),
    "12B": ("gemma4_unified_text", {}),
    "3n": ("gemma3n_text", {}),
    "E2B of several parts": ("gemma4", {}),
    "12B of several parts": ("gemma4_unified", {}),
}
NEW = 5
SHARING = {"E2B": 3, "3n": 3, "E2B of several parts": 3}


@pytest.fixture(scope="module", params=MODELS)
def named(request: pytest.FixtureRequest) -> Iterator[tuple[str, Any]]:
    torch.set_num_threads(1)
    family, changes = MODELS[request.param]
    yield request.param, tiny_causal(family, **changes)


@pytest.fixture(scope="module")
def small() -> Any:
    torch.set_num_threads(1)
    return tiny_causal("gemma4_text")


# --- groups


@pytest.mark.parametrize(
    ("layers", "count", "wasted"),
    [
        ([Kept(512, 1, 256)] * 12 + [Kept(0, 1, 512)] * 3, 3, 0.0),  # E2B
        ([Kept(512, 2, 256)] * 20 + [Kept(0, 2, 512)] * 4, 7, 0.0),  # E4B
        ([Kept(1024, 8, 256)] * 25 + [Kept(0, 2, 512)] * 5, 28, 0.03),  # 26B-A4B
        ([Kept(1024, 16, 256)] * 50 + [Kept(0, 4, 512)] * 10, 11, 0.0),  # 31B
    ],
)
def test_a_block_has_the_room_that_layers_of_either_shape_fill(layers: list[Kept], count: int, wasted: float) -> None:
    groups = group_layers(layers, 131_072)
    assert groups.count == count
    assert len(set(groups.places)) == len(layers)
    for (group, place), layer in zip(groups.places, layers, strict=True):
        assert (groups.windows[group], groups.shapes[group]) == (layer.window, layer.shape)
        assert place < groups.layers(layer.shape)
    needed = sum(layer.heads * layer.width for layer in layers)
    assert needed <= groups.room <= (1 + wasted) * needed


def test_a_layer_that_reads_another_has_its_place() -> None:
    layers = [Kept(0, 2, 8), Kept(4, 2, 8), Kept(0, 1, 16), Kept(4, 2, 8, 1), Kept(0, 2, 8, 0)]
    for groups in (group_layers(layers, 4096), of_size(layers, 16)):
        assert groups.readers == {3, 4}
        assert groups.places[3] == groups.places[1]
        assert groups.places[4] == groups.places[0]
        assert len(set(groups.places)) == 3


# --- answers


def test_tokens_and_logits_are_those_of_generate(named: tuple[str, Any]) -> None:
    _, model = named
    decoder = Decoder(model, slots=4, max_length=128)
    assert decoder.tier == "generic"
    check_as_generate(decoder, model, model.get_decoder(), NEW)


def test_sixty_four_rows_in_a_small_pool_are_each_as_alone(named: tuple[str, Any], lent: Served) -> None:
    check_company_of_64(lent, named[1], "generic")


def test_layers_that_share_keep_nothing_of_their_own(named: tuple[str, Any]) -> None:
    name, model = named
    decoder = Decoder(model, slots=2, max_length=128)
    groups, kept = decoder.groups, decoder.model.kept
    assert len(groups.readers) == SHARING.get(name, 0)
    assert len(set(groups.shapes)) == (1 if name == "3n" else 2)
    numbers = sum(layer.heads * layer.width for layer in kept if layer.source < 0)
    assert decoder.model.kv_bytes_per_token() == 2 * 4 * numbers
    assert decoder.state.bytes() == (decoder.state.blocks + 1) * block_bytes(decoder.model, groups)


@pytest.mark.parametrize("tokens", [0, 22 * BLOCK], ids=["in place", "anywhere"])
def test_windows_are_given_up_and_prefixes_shared_in_each_shape(tokens: int) -> None:
    model = tiny_causal("gemma4_text", max_position_embeddings=1024, sliding_window=70)
    decoder = Decoder(model, 3, 1024, tokens=tokens)
    pool, full = decoder.tables.pool, decoder.groups.windows.count(0)
    ids = prompt(model, 400)
    decoder.open(1, None, ids, "salt")
    for start in range(0, 400, 90):
        decoder.prefill(1, ids[start : start + 90])
        assert pool.used <= decoder.groups.blocks(min(400, start + 90), 90)
    answer = steps(decoder, [1], 40)[0]
    check_greedy(model, ids, answer)
    assert len(decoder.tables.blocks(1)) <= full * 7 + (decoder.groups.count - full) * 3
    known = [*ids, *answer]
    decoder.release(1, known)
    assert decoder.open(0, None, [*known, 5, 6], "salt") == len(known) - 1
    decoder.prefill(0, [known[-1], 5, 6])
    check_greedy(model, [*known, 5, 6], steps(decoder, [0], 5)[0])


@torch.inference_mode()
def test_blocks_of_either_shape_are_copied_and_discarded_by_themselves(small: Any) -> None:
    decoder = Decoder(small, 2, 128, tokens=3 * BLOCK)
    state, groups = decoder.state, decoder.groups
    assert not state.in_place
    for shape, store in state.stores.items():
        for cache in store:
            cache[:, :, 0] = 1.0
        group = groups.shapes.index(shape)
        state.copy(group, 0, 2)
        for other, kept in state.stores.items():
            assert all(bool(cache[:, :, 2].any()) == (other == shape) for cache in kept)
        for kept in state.stores.values():
            for cache in kept:
                cache.zero_()


def test_a_narrow_cache_holds_both_shapes(small: Any) -> None:
    told = reference(small)()
    decoder = Decoder(small, 3, 64, narrow=True)
    found = errors(decoder, told)
    assert {store.keys.dtype for store in decoder.state.stores.values()} == {FP8}
    assert 1e-3 < max(found.values()) < 0.2
    assert max(errors(Decoder(small, 3, 64), told).values()) < 1e-5


def test_a_mask_that_knows_the_tokens_of_one_forward_is_read_within_them() -> None:
    """As Gemma 4's is, of which images see each other; beyond its tokens a GPU could only fail."""
    blocks = torch.full((1, 4), -1)

    def overlaid(blocks: torch.Tensor) -> MaskFunction:
        def alike(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
            same = (blocks[b, q] == blocks[b, k]) & (blocks[b, q] >= 0)
            return (k <= q) | same

        return alike

    recorder = CallRecorder(1000, torch.device("cpu"))
    module = SimpleNamespace(is_causal=True)
    mask = recorder.mask(overlaid(blocks), 4, 4)
    for window in (None, 512):
        assert recorder._window(module, mask, {"sliding_window": window}) == (window or 0)
    with pytest.raises(Unlike, match="not that of the window"):
        recorder._window(module, mask, {"sliding_window": 2})
    with pytest.raises(Unlike, match="neither causal nor a window"):
        recorder._window(module, recorder.mask(overlaid(torch.zeros(1, 4)), 4, 4), {"sliding_window": 512})


# --- refusals, facts


def test_a_gpu_s_kernels_hold_even_heads_up_to_512_that_may_differ() -> None:
    _check_kernels({128, 256, 512})
    with pytest.raises(Unlike, match="heads of 576"):
        _check_kernels({64, 576})
    with pytest.raises(Unlike, match="heads of 65"):
        _check_kernels({64, 65})


def test_attention_in_both_directions_throughout_is_refused() -> None:
    from scoring.errors import LoadError

    with pytest.raises(LoadError, match="both directions"):
        Decoder(tiny_causal("gemma4_text", use_bidirectional_attention="all"), 1, 64)


def test_facts_tell_the_widest_heads() -> None:
    """They are not the hidden size by the heads, and a number that differs by layer is no error."""
    family, changes = MODELS["31B"]
    facts = facts_of(tiny_causal(family, **changes), generative=True)
    assert (facts.head_dim, facts.kv_heads) == (16, 2)
    assert facts_of(tiny_causal("gemma2", head_dim=16), generative=True).head_dim == 16
    assert facts_of(tiny_causal("gpt2"), generative=True).head_dim == 8


def test_the_pass_serves_it(small: Any) -> None:
    from scoring.passes.static_decode import StaticDecode

    chosen = StaticDecode(slots=3, max_length=64)
    assert chosen.apply(small).detail.startswith("3 slots")
    assert chosen.verify(small, reference(small)) <= 1e-5
