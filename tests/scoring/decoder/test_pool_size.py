"""The size of a GPU's KV cache: what memory has room for, never more than slots can fill, the same on all ranks."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from scoring.decoder.block_pool import BLOCK
from scoring.decoder.chunk_size import longest_chunk, row_bytes, span_bytes
from scoring.decoder.head_shapes import Heads
from scoring.decoder.layer_groups import Kept, group_layers
from scoring.decoder.pool_size import block_bytes, pool_blocks, scratch_bytes
from scoring.limits.memory_shares import LEAST_CACHE_TOKENS, RESERVE_BYTES

GPU = 80 << 30
CONTEXT = 131_072
WHOLE = group_layers([Kept(0, 8, 128)] * 28, CONTEXT)


def model(device: str = "cuda", least: int | None = None) -> Any:
    """Sizes of Llama 3.2 3B; with `least`, another rank has room for so many blocks."""
    team = None if least is None else SimpleNamespace(least=lambda own: min(own, least))
    return SimpleNamespace(
        device=torch.device(device),
        layers=[SimpleNamespace(attention=SimpleNamespace(window=0, cap=0.0, sinks=None))] * 28,
        alibi=None,
        scratch_width=16_384 + 8192,
        slot_bytes=0,
        heads=24,
        kv_heads=8,
        head_dim=128,
        heads_of=lambda index: Heads(24, 8, 128),
        hidden=3072,
        vocabulary=128_256,
        dtype=torch.bfloat16,
        team=team,
    )


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Free bytes of the GPU, which a test may change."""
    free = [GPU - (7 << 30)]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[0], GPU))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    return free


def test_it_is_what_the_share_leaves_beside_weights_and_scratch(memory: list[int]) -> None:
    blocks = pool_blocks(model(), WHOLE, 64, CONTEXT, 0, 0.0)
    taken = (blocks + 1) * block_bytes(model(), WHOLE) + (7 << 30)
    assert 0.88 * GPU < taken < 0.9 * GPU
    assert blocks * BLOCK > 4 * CONTEXT  # where every slot at full length would need 64 times as much
    assert pool_blocks(model(), WHOLE, 64, CONTEXT, 0, 0.5) < 0.6 * blocks
    whole = pool_blocks(model(), WHOLE, 64, CONTEXT, 0, 1.0)
    assert (whole + 1) * block_bytes(model(), WHOLE) < memory[0] - RESERVE_BYTES


def test_it_is_bounded_by_what_was_asked_for_and_what_slots_can_fill(memory: list[int]) -> None:
    assert pool_blocks(model(), WHOLE, 64, CONTEXT, 100_000, 0.0) == -(-100_000 // BLOCK)
    assert pool_blocks(model(), WHOLE, 64, CONTEXT, 10**9, 0.0) == pool_blocks(model(), WHOLE, 64, CONTEXT, 0, 0.0)
    assert pool_blocks(model(), WHOLE, 4, 100, 0, 0.0) == 4 * 2
    assert pool_blocks(model("cpu"), WHOLE, 64, CONTEXT, 0, 0.0) == 64 * CONTEXT // BLOCK


def test_chunks_of_prompts_are_as_long_as_memory_allows_and_counted(memory: list[int], monkeypatch: Any) -> None:
    assert longest_chunk(model()) == 8192
    counted = scratch_bytes(model(), 64, CONTEXT)
    assert counted > 8192 * row_bytes(model()) + span_bytes(model(), CONTEXT)
    assert span_bytes(model(), CONTEXT) > 2 * 32_768 * 8 * 128 * 2 + 6 * 8192 * 24 * 128 * 2  # keys, values, results
    assert span_bytes(model(), 8192) == 0
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (memory[0] // 5, GPU // 5))
    assert longest_chunk(model()) == 2048
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (memory[0] // 40, GPU // 40))
    assert longest_chunk(model()) == 1024
    assert longest_chunk(model("cpu")) == 1024


def test_all_ranks_take_the_smallest(memory: list[int]) -> None:
    assert pool_blocks(model(least=300), WHOLE, 64, CONTEXT, 0, 0.0) == 300
    assert pool_blocks(model(least=10**9), WHOLE, 64, CONTEXT, 0, 0.0) == pool_blocks(
        model(), WHOLE, 64, CONTEXT, 0, 0.0
    )


def test_too_little_to_serve_is_refused(memory: list[int]) -> None:
    memory[0] = RESERVE_BYTES + (3 << 30)
    assert pool_blocks(model(), WHOLE, 2, CONTEXT, 0, 1.0) * BLOCK >= LEAST_CACHE_TOKENS
    memory[0] = RESERVE_BYTES + (2 << 30)
    with pytest.raises(torch.OutOfMemoryError, match="would have room for"):
        pool_blocks(model(), WHOLE, 64, CONTEXT, 0, 1.0)
    with pytest.raises(torch.OutOfMemoryError):
        pool_blocks(model(least=-1), WHOLE, 64, CONTEXT, 0, 1.0)
