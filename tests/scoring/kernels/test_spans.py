"""Attention of a step over contexts whose spans are longer than a tile, against torch.

TRITON_INTERPRET=1 pytest tests/scoring/kernels/test_spans.py     # with triton installed, no GPU
"""

import os

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a GPU, or TRITON_INTERPRET=1", allow_module_level=True)

from scoring.kernels import decode_attention  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::DeprecationWarning")
_HEADS, _KV, _WIDE, _BLOCK, _SPLITS = 4, 2, 16, 64, 40


@pytest.mark.parametrize(
    ("own", "window", "spans"), [(130, 0, 3), (800, 0, 7), (1600, 0, 9), (2600, 0, 11), (2600, 1024, 9)]
)
def test_spans_grow_with_the_keys_and_miss_none(own: int, window: int, spans: int) -> None:
    torch.manual_seed(0)
    blocks = own // _BLOCK + 2
    keys, values = (torch.randn(_KV, blocks, _BLOCK, _WIDE, device=DEVICE) for _ in range(2))
    order = torch.randperm(blocks).to(DEVICE)
    table, q = order.to(torch.int32)[None].contiguous(), torch.randn(1, _HEADS, _WIDE, device=DEVICE)
    out, part = torch.zeros_like(q), torch.zeros(_KV * _SPLITS, 16, 16, device=DEVICE)
    stats = torch.zeros(_KV, _SPLITS, 2, 16, device=DEVICE)
    arrived, slots = (torch.zeros(size, dtype=torch.int32, device=DEVICE) for size in (_KV, 1))
    lengths, absent = torch.full((1,), own, dtype=torch.int32, device=DEVICE), torch.zeros(1, device=DEVICE)
    decode_attention.attend[(_KV, _SPLITS)](
        q, keys, values, out, part, stats, arrived, absent, slots, lengths, absent, absent, absent, absent, absent,
        table, absent, blocks, blocks, 0.25, 0.0, 1e-6, BLOCK=_BLOCK, H=_HEADS, KV=_KV, D=_WIDE, DP=16, GP=16, BT=64,
        LEAST=64, SPLITS=_SPLITS, WINDOW=window, ALIBI=False, CAP=False, SINKS=False, NORMED=False, BIAS=False, HALF=8,
        INTERLEAVED=False, ROTARY=False, PRECISION="ieee", PDL=False,
    )  # fmt: skip
    seen = slice(max(0, own + 1 - window) if window else 0, own + 1)
    k, v = (cache[:, order].reshape(_KV, -1, _WIDE)[:, seen] for cache in (keys, values))
    scores = torch.einsum("kgd,ktd->kgt", q.view(_KV, -1, _WIDE), k) * 0.25
    assert (out.view(_KV, -1, _WIDE) - scores.softmax(-1) @ v).abs().max() < 1e-5
    assert int((stats[0].abs().sum((1, 2)) > 0).sum()) == spans
    assert not arrived.any()
