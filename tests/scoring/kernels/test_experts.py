"""Kernels of a mixture's experts where choices are uneven, interpreted on a CPU, or on a GPU."""

import os

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a GPU, or TRITON_INTERPRET=1", allow_module_level=True)

from scoring.decoder.expert_step import tiles_of  # noqa: E402
from scoring.kernels import decode_experts  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::DeprecationWarning")
ROWS, EXPERTS, CHOSEN, WIDE, INNER, BM = 75, 5, 2, 40, 24, 16
PDL = DEVICE == "cuda"


def chosen_by_kernel(logits: Tensor, renormalised: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """Experts [rows, chosen], their shares, and the count of tiles, which is reset."""
    rows, experts = logits.shape
    chosen = torch.full((rows, CHOSEN), -1, dtype=torch.int32, device=DEVICE)
    shares, used = torch.zeros(rows, CHOSEN, device=DEVICE), torch.ones(1, dtype=torch.int32, device=DEVICE)
    decode_experts.choose[(rows,)](
        logits,
        logits,
        chosen,
        shares,
        used,
        experts,
        XP=8,
        CHOSEN=CHOSEN,
        CP=2,
        RENORMALISED=renormalised,
        BIAS=False,
        PDL=PDL,
    )
    return chosen, shares, used


@pytest.mark.parametrize("renormalised", [True, False])
def test_the_highest_are_chosen(renormalised: bool) -> None:
    logits = torch.randn(ROWS, EXPERTS, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    chosen, shares, used = chosen_by_kernel(logits, renormalised)
    wanted, where = logits.softmax(-1).topk(CHOSEN)
    assert torch.equal(chosen.long(), where)
    assert (shares - (wanted / wanted.sum(-1, keepdim=True) if renormalised else wanted)).abs().max() <= 1e-6
    assert used.item() == 0


@pytest.mark.parametrize("number", [float("nan"), float("-inf"), float("inf"), 0.0])
def test_whatever_the_scores_are_experts_are_chosen(number: float) -> None:
    """Their numbers are places in memory."""
    chosen, _, _ = chosen_by_kernel(torch.full((2, EXPERTS), number, device=DEVICE))
    assert bool(((chosen >= 0) & (chosen < EXPERTS)).all())


@torch.inference_mode()
def test_rows_are_grouped_however_uneven_the_choices() -> None:
    """An expert of several tiles, one of a single row, and one of none."""
    generator = torch.Generator().manual_seed(1)
    chosen = torch.tensor([[3, 0]] * 70 + [[0, 4]] + [[3, 1]] * 4, dtype=torch.int32, device=DEVICE)
    shares = torch.rand(ROWS, CHOSEN, generator=generator).to(DEVICE)
    x = torch.randn(ROWS, WIDE, generator=generator).to(DEVICE)
    up = torch.randn(EXPERTS, 2 * INNER, WIDE, generator=generator).to(DEVICE)
    down = torch.randn(EXPERTS, WIDE, INNER, generator=generator).to(DEVICE)
    choices, tiles = ROWS * CHOSEN, tiles_of(ROWS * CHOSEN, EXPERTS, BM)
    order, table = (torch.full((size,), -1, dtype=torch.int32, device=DEVICE) for size in (choices, 3 * tiles))
    used = torch.zeros(1, dtype=torch.int32, device=DEVICE)
    inner, outs = torch.zeros(choices, INNER, device=DEVICE), torch.zeros(choices, WIDE, device=DEVICE)
    out = torch.zeros(ROWS, WIDE, device=DEVICE)
    shape = {"BM": BM, "BN": 16, "BK": 32, "PRECISION": "ieee", "PDL": PDL}
    decode_experts.group[(EXPERTS,)](chosen, order, table, used, choices, tiles, BM=BM, BC=64, PDL=PDL)
    assert used.item() == 5 + 5 + 1 + 1 <= tiles
    assert sorted(order.tolist()) == list(range(choices))
    decode_experts.grouped_gated[(tiles * 2,)](
        x,
        up,
        x,
        order,
        table,
        used,
        inner,
        INNER,
        WIDE,
        tiles,
        0.0,
        0.0,
        ACT="silu",
        CLAMPED=False,
        INTERLEAVED=False,
        BIAS=False,
        CHOSEN=CHOSEN,
        **shape,
    )
    decode_experts.grouped_down[(tiles * 3,)](
        inner, down, x, order, table, used, shares, outs, WIDE, INNER, tiles, BIAS=False, **shape
    )
    decode_experts.combine[(ROWS, 1)](outs, out, WIDE, BN=64, CHOSEN=CHOSEN, PDL=PDL)
    gate, upper = torch.einsum("tk,tcnk->tcn", x, up[chosen.long()]).chunk(2, -1)
    wanted = torch.einsum("tcn,tcmn,tc->tm", torch.nn.functional.silu(gate) * upper, down[chosen.long()], shares)
    assert (out - wanted).abs().max() <= 1e-3
