"""Attention of a chunk of prompts over a paged cache, against plain torch: interpreted on a CPU, compiled on a GPU.

TRITON_INTERPRET=1 pytest tests/scoring/kernels/test_prompt_attention.py     # with triton installed, no GPU
"""

import os
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a GPU, or TRITON_INTERPRET=1", allow_module_level=True)

from scoring.decoder import chunk_size, prompt_attention  # noqa: E402
from scoring.decoder.block_pool import BLOCK  # noqa: E402
from scoring.decoder.head_shapes import Heads  # noqa: E402
from scoring.decoder.kv_cache import KVCache  # noqa: E402
from scoring.decoder.layer_groups import Kept  # noqa: E402
from scoring.decoder.model import Attention, Linear  # noqa: E402
from scoring.decoder.prefill import Layout, Part, runs_of  # noqa: E402
from scoring.decoder.prompt_attention import ChunkAttention, Tiling  # noqa: E402

LENGTH = 512
PARTS: list[Part] = [(2, 330, range(70)), (0, 0, range(3)), (1, 131, range(20))]


def model_of(head_dim: int = 16, alibi: bool = False, dtype: torch.dtype = torch.float32, **own: Any) -> Any:
    """What the attention reads of a model of 4 query heads on 2 key heads."""
    linear = Linear(torch.empty(0, 0))
    return SimpleNamespace(
        layers=[SimpleNamespace(attention=Attention(linear, linear, head_dim**-0.5, **own))],
        heads=4,
        kv_heads=2,
        head_dim=head_dim,
        kept=[Kept(own.get("window", 0), 2, head_dim)],
        heads_of=lambda index: Heads(4, 2, head_dim),
        vocabulary=8,
        alibi=torch.tensor([0.5, 0.25, 0.125, 0.0625], device=DEVICE) if alibi else None,
        dtype=dtype,
        device=torch.device(DEVICE),
    )


def prepared(model: Any) -> KVCache:
    """A cache of random numbers, its blocks in any order; what no token holds is not a number."""
    state = KVCache(model, 3, LENGTH)
    order = torch.randperm(state.blocks, generator=torch.Generator().manual_seed(0)).int()
    state.table[0, :3] = order.view(3, -1).to(DEVICE)
    for cache in (state.keys, state.values):
        cache.normal_()
        for slot, position, ids in PARTS:
            end = position + len(ids)
            cache[:, :, state.table[0, slot, end // BLOCK], end % BLOCK :] = torch.nan
    return state


def plain(model: Any, state: KVCache, q: torch.Tensor) -> torch.Tensor:
    """The same in float32, query by query."""
    own, out = model.layers[0].attention, []
    for (row, count, _), (slot, position, _) in zip(runs_of(PARTS, [[]] * len(PARTS)), PARTS, strict=True):
        blocks = state.table[0, slot].long()
        k, v = (
            cache[0][:, blocks].flatten(1, 2)[:, : position + count].float().repeat_interleave(2, 0)
            for cache in (state.keys, state.values)
        )
        for token in range(count):
            scores = (k @ q[row + token].float()[:, :, None])[..., 0] * own.scale
            scores = own.cap * torch.tanh(scores / own.cap) if own.cap else scores
            distance = position + token - torch.arange(position + count, device=q.device)
            if model.alibi is not None:
                scores = scores - model.alibi[:, None] * distance
            hidden = (distance < 0) | ((distance >= own.window) if own.window else (distance < 0))
            scores = scores.masked_fill(hidden, -torch.inf)
            if own.sinks is not None:
                scores = torch.cat((scores, own.sinks[:, None]), 1)
            weights = torch.softmax(scores, -1)[:, : position + count]
            out.append((weights[:, None] @ v.nan_to_num())[:, 0])
    return torch.stack(out)


def attended(model: Any, state: KVCache, q: torch.Tensor, rows: int, alone: bool = False) -> torch.Tensor:
    """By the kernel, in a layout of more tiles than are used; prefixes by spans where there are any."""
    ours = ChunkAttention(model, state, rows)
    layout = Layout(rows, 4, ours.queries)
    numbers = torch.zeros(layout.size, dtype=torch.int32)
    spans = [ours.spans(len(ids), position, alone, rows) for _, position, ids in PARTS]
    layout.fill(numbers, PARTS, 3, spans)
    _, parts, tiled = layout.cut(numbers.to(DEVICE))
    ours.slots = parts[1]
    out, slopes = torch.zeros_like(q), q if model.alibi is None else model.alibi
    ours.attend(0, q, out, tiled, layout.tiles, slopes, False, {}, runs_of(PARTS, spans) if any(spans) else ())
    return out[: sum(len(ids) for _, _, ids in PARTS)]


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "narrow": {"head_dim": 24},
    "wide": {"head_dim": 80},
    "longest": {"head_dim": 512},
    "longest-window": {"head_dim": 512, "window": 100},
    "window": {"window": 100},
    "short-window": {"window": 5},
    "capped": {"cap": 2.0},
    "alibi": {"alibi": True},
    "sinks": {"sinks": torch.tensor([0.5, -1.0, 3.0, 0.0], device=DEVICE), "window": 100},
}


@pytest.mark.parametrize("case", CASES)
def test_it_equals_plain_attention(case: str) -> None:
    torch.manual_seed(0)
    model = model_of(**CASES[case])
    state, q = prepared(model), torch.randn(128, 4, model.head_dim, device=DEVICE)
    assert (attended(model, state, q, 128) - plain(model, state, q)).abs().max() <= 2e-5


@pytest.mark.parametrize("dtype", [torch.float16] if DEVICE == "cpu" else [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("case", ["plain", "window", "wide"])
def test_it_reads_keys_and_values_through_descriptors(
    case: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    tilings = {2: {256: Tiling(64, 64, 4, 2, described=True)}}
    monkeypatch.setattr(prompt_attention, "TILINGS", tilings)
    torch.manual_seed(0)
    model = model_of(dtype=dtype, **CASES[case])
    state, q = prepared(model), torch.randn(128, 4, model.head_dim, device=DEVICE, dtype=dtype)
    assert (attended(model, state, q, 128) - plain(model, state, q)).abs().max() <= 3e-2


@pytest.mark.parametrize("case", ["plain", "window"])
def test_it_goes_on_from_the_results_of_spans(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the first part two long spans and a short one; of the last, too few tokens for a short one, a long one."""
    for module in (chunk_size, prompt_attention):
        monkeypatch.setattr(module, "SPANS", {128: 16, 64: 64})
    monkeypatch.setattr(chunk_size, "takes_spans", lambda model: True)
    assert [chunk_size.spans_of(None, LENGTH, len(ids), at) for _, at, ids in PARTS] == [  # type: ignore[arg-type]
        [(0, 128), (128, 128), (256, 64)],
        [],
        [(0, 128)],
    ]
    torch.manual_seed(0)
    dtype = torch.float32 if DEVICE == "cpu" else torch.bfloat16
    model = model_of(64, dtype=dtype, **CASES[case])
    state, q = prepared(model), torch.randn(128, 4, 64, device=DEVICE, dtype=dtype)
    for alone in (False, True):  # all parts' spans short ones, two at once
        error = (attended(model, state, q, 128, alone) - plain(model, state, q)).abs().max()
        assert error <= (2e-5 if DEVICE == "cpu" else 3e-2)
