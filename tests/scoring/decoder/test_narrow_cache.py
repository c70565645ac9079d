"""A KV cache in FP8 on a CPU: as plain transformers with a cache that rounds, in a quarter of float32's bytes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from scoring.decoder.decoder import Decoder
from scoring.decoder.kv_cache import FP8
from scoring.decoder.pool_size import block_bytes
from scoring.decoder.verify import reference
from scoring.errors import PassNotServed
from scoring.model.loaded import Runtime
from scoring.passes.base import Applicability
from scoring.passes.runner import require_cache, run_passes
from scoring.passes.static_decode import FP8_CACHE_BOUND, StaticDecode
from tests.scoring.decoder.test_adapters import prompt, tiny


class Rounding(DynamicCache):  # type: ignore[misc,unused-ignore]
    """A cache that rounds keys and values to FP8 as they enter."""

    def update(self, key_states: Any, value_states: Any, *more: Any, **named: Any) -> Any:
        rounded = [each.clamp(-448, 448).to(torch.float8_e4m3fn).to(each.dtype) for each in (key_states, value_states)]
        return super().update(*rounded, *more, **named)


def plain(model: Any, ids: list[int]) -> torch.Tensor:
    """Logits [T, vocabulary] of plain transformers over a cache that rounds."""
    found: torch.Tensor = model(torch.tensor([ids]), past_key_values=Rounding(config=model.config)).logits[0]
    return found


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize(
    ("family", "tier"),
    [("llama", "fused"), ("gpt2", "fused"), ("gemma2", "fused"), ("qwen3", "fused"), ("qwen3", "generic")],
)
@pytest.mark.parametrize("paged", [False, True], ids=["in place", "paged"])
@torch.inference_mode()
def test_answers_are_those_of_a_cache_that_rounds(family: str, tier: Any, paged: bool, tmp_path: Path) -> None:
    """Closer by far than to the cache that does not: a key at the edge of two numbers may take the other."""
    model, ids = tiny(family, tmp_path), [*prompt(tiny(family, tmp_path), 70), 9, 11]
    decoder = Decoder(model, 4, 128, tokens=256 if paged else 0, tier=tier, narrow=True)
    assert decoder.state.keys.dtype == FP8
    decoder.open(2)
    decoder.prefill(2, ids[:40])
    found = [decoder.prefill(2, ids[40:70])]
    decoder.sample([2])
    for token in ids[70:]:
        decoder.feed(2, token)
        decoder.step([2])
        found.append(decoder.last_logits(1)[0].clone())
    wanted, exact = plain(model, ids)[69:], model(torch.tensor([ids])).logits[0, 69:]
    error, moved = relative(torch.stack(found), wanted), relative(exact, wanted)
    assert error < 0.2 * moved
    assert moved > 1e-3


@torch.inference_mode()
def test_numbers_beyond_its_range_are_kept_at_its_end(tmp_path: Path) -> None:
    model = tiny("llama", tmp_path)
    for layer in model.model.layers:
        layer.self_attn.v_proj.weight *= 1e5
    decoder = Decoder(model, 2, 64, narrow=True)
    decoder.open(0)
    logits = decoder.prefill(0, prompt(model, 20))
    assert logits.isfinite().all()
    assert decoder.state.values.float().abs().max() == torch.finfo(FP8).max


def test_it_takes_a_byte_a_number(tmp_path: Path) -> None:
    model = tiny("llama", tmp_path)
    wide, narrow = (Decoder(model, 2, 128, narrow=each) for each in (False, True))
    assert 4 * narrow.state.bytes() == wide.state.bytes()
    assert 4 * block_bytes(narrow.model, narrow.groups, FP8.itemsize) == block_bytes(narrow.model, narrow.groups)


def test_blocks_are_shared_and_copied_in_fp8(tmp_path: Path) -> None:
    model = tiny("llama", tmp_path)
    decoder, ids = Decoder(model, 4, 128, tokens=512, narrow=True), prompt(model, 90)
    decoder.open(0, ids=ids, salt="a")
    whole = decoder.prefill(0, ids)
    held = decoder.open(1, ids=ids, salt="a")
    assert held >= 64
    assert relative(decoder.prefill(1, ids[held:]), whole) < 1e-2


@pytest.mark.parametrize(("family", "served"), [("gemma2", True), ("qwen2", False)])
def test_its_error_is_verified_and_bounded(family: str, served: bool, tmp_path: Path) -> None:
    """Weights of a tiny qwen2 are so large that eight bits of its keys change its answers."""
    model = tiny(family, tmp_path)
    chosen = StaticDecode(slots=2, max_length=64)
    chosen.narrow = True
    runtime, decision = Runtime(), Applicability(True, "asked for")
    records = run_passes(model, runtime, [(chosen, decision)], (), reference)
    assert (records[0].state, runtime.decoder is not None) == (("applied", True) if served else ("dropped", False))
    assert records[0].error is not None
    assert (1e-4 < records[0].error <= FP8_CACHE_BOUND) == served
    if served:
        assert " in FP8" in records[0].reason
        require_cache(records)
    else:
        with pytest.raises(
            PassNotServed, match="FP8 was asked for and cannot be served: it differs from plain"
        ) as told:
            require_cache(records)
        assert "Leave out kv_cache_dtype" in told.value.hint
