"""The generic tier's GPU back end over layers whose heads differ, against its CPU one, by interpreted kernels.

TRITON_INTERPRET=1 pytest tests/scoring/kernels/test_head_shapes.py     # with triton installed, no GPU
"""

import os
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")
if torch.cuda.is_available():
    pytest.skip("tests/scoring/decoder/test_layer_shapes_gpu.py has the real ones", allow_module_level=True)
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1, and no GPU", allow_module_level=True)

from scoring.decoder import cuda_backend, kv_cache
from scoring.decoder.block_pool import BLOCK
from scoring.decoder.decoder import Decoder
from scoring.decoder.generic.cuda_backend import GenericCudaBackend
from scoring.decoder.head_shapes import Heads, key_tile
from scoring.decoder.prefill import pieces
from scoring.kernels import decode_attention
from tests.scoring.decoder.gemma4 import SIZES, gemma4
from tests.scoring.decoder.test_adapters import prompt
from tests.scoring.kernels.uncaptured import uncaptured

pytestmark = [
    pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::DeprecationWarning"),
    pytest.mark.timeout(900),  # the interpreter takes a minute a model
]


@pytest.fixture(params=SIZES)
def both(request: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Decoder, Decoder]:
    """A model of narrow heads, its decoder on a CPU, and one whose back end and cache are a GPU's."""
    model = gemma4(request.param, head_dim=8, global_head_dim=16, sliding_window=20)
    plain = Decoder(model, 3, 128, tokens=4 * 128, drafts=True)
    monkeypatch.setattr(kv_cache, "_overlaid", lambda device, groups: len(set(groups.shapes)) > 1)
    ours = Decoder(model, 3, 128, tokens=4 * 128, drafts=True)
    monkeypatch.setattr(cuda_backend, "pieces", lambda parts, rows, most: pieces(parts, 48, 2))
    ours._cuda = uncaptured(monkeypatch, GenericCudaBackend)(ours.model, ours.state, drafts=True)
    assert ours.state.overlaid and not plain.state.overlaid
    return model, plain, ours


def answers(decoder: Decoder, model: Any) -> list[Any]:
    """Logits and tokens of prompts in pieces, past windows, after a shared prefix, in steps and with drafts."""
    first = prompt(model, 80)
    shared = [*first[:70], *prompt(model, 7, 3)]
    decoder.open(1, None, first, "salt")
    told: list[Any] = [decoder.prefill(1, first[:40]), decoder.prefill(1, first[40:])]
    held = decoder.open(2, None, shared, "salt")  # of its last block a copy
    assert held == 70
    told += [decoder.prefill(2, shared[held:]), decoder.sample([1, 2]).tokens()]
    decoder.open(0)
    told += [decoder.prefill(0, prompt(model, 3)), decoder.sample([0]).tokens()]
    told += [decoder.step([2, 0, 1]).tokens()]
    told += [decoder.speculate([(1, [told[-1][2], 7, 8]), (0, [told[-1][1], 5])]).runs(), decoder.step([1, 0]).tokens()]
    return told


@torch.inference_mode()
def test_answers_are_those_of_the_cpu(both: tuple[Any, Decoder, Decoder]) -> None:
    model, plain, ours = both
    for wanted, found in zip(answers(plain, model), answers(ours, model), strict=True):
        if isinstance(wanted, torch.Tensor):
            assert (found - wanted).norm() <= 1e-5 * wanted.norm()
        else:
            assert found == wanted
    assert plain.tables.pool.used == ours.tables.pool.used


# --- tiles


@pytest.mark.parametrize(("keys", "window"), [(32, 0), (32, 100), (16, 0), (16, 1000)])
def test_a_step_reads_heads_of_512_by_smaller_tiles(keys: int, window: int) -> None:
    torch.manual_seed(0)
    heads, own, splits = Heads(8, 2, 512), 300, 4
    blocks = own // BLOCK + 2
    cache = torch.randn(2, heads.keys, blocks, BLOCK, heads.width)
    table, q = torch.randperm(blocks).int()[None].contiguous(), torch.randn(1, heads.queries, heads.width)
    out, absent = torch.zeros_like(q), torch.zeros(1)
    part, stats = torch.zeros(heads.keys * splits * 16 * heads.wide), torch.zeros(heads.keys * splits * 2 * 16)
    arrived, slots = torch.zeros(heads.keys, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    decode_attention.attend[(heads.keys, splits)](
        q, *cache, out, part, stats, arrived, absent, slots, torch.full((1,), own, dtype=torch.int32), absent, absent,
        absent, absent, absent, table, absent, blocks, blocks, 0.05, 0.0, 1e-6, BLOCK=BLOCK, H=heads.queries,
        KV=heads.keys, D=heads.width, DP=heads.wide, GP=16, BT=keys, LEAST=64, SPLITS=splits, WINDOW=window,
        ALIBI=False, CAP=False, SINKS=False, NORMED=False, BIAS=False, HALF=256, INTERLEAVED=False, ROTARY=False,
        PRECISION="ieee", PDL=False,
    )  # fmt: skip
    seen = slice(max(0, own + 1 - window) if window else 0, own + 1)
    k, v = (each[:, table[0].long()].flatten(1, 2)[:, seen] for each in cache)
    scores = torch.einsum("kgd,ktd->kgt", q.view(heads.keys, -1, heads.width), k) * 0.05
    assert (out.view(heads.keys, -1, heads.width) - scores.softmax(-1) @ v).abs().max() < 1e-5
    assert not arrived.any()


def test_registers_hold_a_tile() -> None:
    """In 16 bits, in float32, and of many queries; narrower heads are read by whole blocks."""
    assert key_tile(Heads(8, 1, 256), 16, 2) == (16, 64, 8)
    assert key_tile(Heads(8, 1, 512), 16, 2) == (16, 32, 8)
    assert key_tile(Heads(8, 1, 512), 16, 4) == (16, 16, 8)
    assert key_tile(Heads(32, 1, 320), 32, 2) == (32, 16, 8)
    assert key_tile(Heads(8, 1, 128), 16, 4) == (16, 64, 4)
