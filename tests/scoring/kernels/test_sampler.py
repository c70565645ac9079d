"""The sampler's Triton kernels against the reference in torch: interpreted on a CPU, compiled on a GPU.

TRITON_INTERPRET=1 pytest tests/scoring/kernels/test_sampler.py     # with triton installed, no GPU
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a GPU, or TRITON_INTERPRET=1", allow_module_level=True)

from scoring.decoder.adapters.builders import build  # noqa: E402
from scoring.decoder.decode_step import Launcher  # noqa: E402
from scoring.decoder.kv_cache import KVCache, SamplingParams  # noqa: E402
from scoring.decoder.sampler import pick, pick_all  # noqa: E402
from tests.scoring.decoder.test_adapters import tiny  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::DeprecationWarning")
SAMPLINGS = (
    SamplingParams(),
    SamplingParams(repetition_penalty=1.7, forbidden=(3, 9), forbidden_until=1000),
    SamplingParams(0.8, seed=11),
    SamplingParams(1.0, seed=7),  # whose draw after 35 tokens has the highest number of all
    SamplingParams(1.3, top_k=7, seed=2**40 + 5),
    SamplingParams(1.1, top_p=0.6, repetition_penalty=1.2, seed=3),
    SamplingParams(0.4, top_p=0.95, seed=5),
    SamplingParams(0.7, top_k=40, seed=6),
    SamplingParams(0.9, 30, 0.8, seed=4, forbidden=(5,), forbidden_until=1000),
    SamplingParams(1.2, min_p=0.05, seed=12),
    SamplingParams(0.9, 30, 0.9, seed=13, min_p=0.3),
    SamplingParams(0.6, 20, 0.9, seed=9, constrained=True),
)
TOP_7 = 4


@pytest.mark.parametrize("spread", [2.0, 0.05], ids=["peaked", "flat"])
@pytest.mark.parametrize("gathered", [1024, 16], ids=["gathered", "whole-rows"])
@torch.inference_mode()
def test_the_sampler_picks_what_the_reference_picks(gathered: int, spread: float, tmp_path: Path) -> None:
    hf_model = tiny("gpt2", tmp_path).to(DEVICE)
    model = build(hf_model, 128)
    model.head.weight = model.head.weight.new_zeros(5000, model.hidden)  # several programs scan, the last not full
    state = KVCache(model, len(SAMPLINGS), 128)
    launcher = Launcher(model, state, len(SAMPLINGS), pdl=DEVICE == "cuda")
    launcher.gathered = gathered
    for slot, sampling in enumerate(SAMPLINGS):
        state.open(slot, sampling)
        state.seen[slot, ::3] = 1
    launcher.buffers.slots[:] = torch.arange(len(SAMPLINGS), device=DEVICE).int()
    generator = torch.Generator().manual_seed(1)
    for length in (0, 1, 2, 35):
        state.lengths.fill_(length)
        logits = spread * torch.randn(len(SAMPLINGS), model.vocabulary, generator=generator)
        expected = [pick(logits[slot].to(DEVICE), state, slot) for slot in range(len(SAMPLINGS))]
        launcher.sample(len(SAMPLINGS), logits.to(DEVICE), advance=False)
        assert launcher.buffers.out.tolist() == expected, length
        assert state.seen[range(len(SAMPLINGS)), expected].all()  # the constrained slot's too


@pytest.mark.parametrize("allowed", [3, 400, 4000])
@torch.inference_mode()
def test_a_mask_leaves_the_sampler_what_it_leaves_the_reference(allowed: int, tmp_path: Path) -> None:
    model = build(tiny("gpt2", tmp_path).to(DEVICE), 128)
    model.head.weight = model.head.weight.new_zeros(5000, model.hidden)
    state, rows = KVCache(model, len(SAMPLINGS), 128), torch.arange(len(SAMPLINGS), device=DEVICE)
    launcher = Launcher(model, state, len(SAMPLINGS), pdl=DEVICE == "cuda")
    for slot, sampling in enumerate(SAMPLINGS):
        state.open(slot, sampling)
    launcher.buffers.slots[:] = rows.int()
    generator = torch.Generator().manual_seed(2)
    for length in range(3):
        state.lengths.fill_(length)
        logits = 2 * torch.randn(len(SAMPLINGS), model.vocabulary, generator=generator).to(DEVICE)
        tokens = torch.stack([torch.randperm(model.vocabulary, generator=generator)[:allowed] for _ in SAMPLINGS])
        masks = packed(tokens, model.vocabulary)
        expected = pick_all(logits, state, rows, masks)
        assert all(token in own for token, own in zip(expected, tokens.tolist(), strict=True))
        before = state.seen.clone()
        launcher.sample(len(SAMPLINGS), logits, advance=True)  # as steps do: the constrained slot's token comes later
        assert torch.equal(state.seen[-2], before[-2])
        assert state.lengths.tolist() == [length + 1] * len(SAMPLINGS) + [length]
        state.seen.copy_(before)
        state.lengths.fill_(length)
        launcher.sample(len(SAMPLINGS), logits, advance=False, masks=masks.to(DEVICE))
        assert launcher.buffers.out.tolist() == expected, length
        assert bool(state.seen[-2, expected[-1]])
        if allowed == 3:  # fewer than the slot's top-k, and yet none but these are looked at
            assert launcher.buffers.places[TOP_7, :3].tolist() == sorted(tokens[TOP_7].tolist())


def packed(tokens: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """Masks [rows, words] int32 that allow tokens [rows, count]."""
    bits = torch.zeros(len(tokens), 32 * ((vocabulary + 31) // 32), dtype=torch.uint8).scatter_(1, tokens, 1)
    return torch.from_numpy(np.packbits(bits.numpy(), axis=1, bitorder="little").view(np.int32))
