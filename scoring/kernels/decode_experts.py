"""Products of a mixture's experts: of single rows by the experts that each chose, of many rows grouped by expert.

Weights are up [X, 2 N, K], the gate's rows first or interleaved, and down [X, N, K]; biases [X, 2 N] and [X, N]. A
choice is a row's j-th expert: its place is row * CHOSEN + j in all that is kept of choices.

Grouped, the choices of an expert are tiles of up to BM rows. How many tiles an expert has is known on the device only,
so as many are launched as there can be, and those left over end at once.
"""

# mypy: ignore-errors
# ruff: noqa: N803

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from scoring.kernels.decode_gemv import activation, both, place_of, read_tile


@triton.jit
def choose(logits_ptr, bias_ptr, chosen_ptr, shares_ptr, used_ptr, X, XP: tl.constexpr, CHOSEN: tl.constexpr,
           CP: tl.constexpr, RENORMALISED: tl.constexpr, BIAS: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    """Choose each row's experts by logits [B, X] + bias: their numbers, highest first, and their shares. Grid (B,).

    No tile is used from then on.
    """
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    row = tl.program_id(0).to(tl.int64)
    if row == 0:
        tl.store(used_ptr, 0)
    x = tl.arange(0, XP)
    j = tl.arange(0, CP)
    logits = tl.load(logits_ptr + row * X + x, mask=x < X, other=float("-inf")).to(tl.float32)
    if BIAS:
        logits += tl.load(bias_ptr + x, mask=x < X, other=0.0).to(tl.float32)
    weights = tl.exp(logits - tl.max(logits, 0))
    total = tl.sum(weights, 0)
    chosen = tl.zeros([CP], tl.int32)
    shares = tl.zeros([CP], tl.float32)
    for number in tl.static_range(CHOSEN):
        best = tl.minimum(tl.argmax(logits, 0), X - 1)  # whatever the logits are, it is an expert
        chosen = tl.where(j == number, best, chosen)
        shares = tl.where(j == number, tl.sum(tl.where(x == best, weights, 0.0), 0), shares)
        logits = tl.where(x == best, float("-inf"), logits)
    if RENORMALISED:
        total = tl.sum(shares, 0)
    tl.store(chosen_ptr + row * CHOSEN + j, chosen, mask=j < CHOSEN)
    tl.store(shares_ptr + row * CHOSEN + j, shares / total, mask=j < CHOSEN)


@triton.jit
def _halves(n, N, INTERLEAVED: tl.constexpr):
    """Return the rows of up of which the n-th output is made: the gate's, and the other."""
    gate = n
    other = n + N
    if INTERLEAVED:
        gate = 2 * n
        other = 2 * n + 1
    return gate, other


@triton.jit
def _gate(gate, up, alpha, limit, ACT: tl.constexpr, CLAMPED: tl.constexpr):
    """Return act(gate) * up, or of both clamped gate * sigmoid(alpha gate) * (up + 1)."""
    if CLAMPED:
        gate = tl.minimum(gate, limit)
        up = tl.minimum(tl.maximum(up, -limit), limit) + 1.0
        gate = gate * tl.sigmoid(alpha * gate)
    else:
        gate = activation(gate, ACT)
    return gate * up


@triton.jit
def gated(x_ptr, gain_ptr, w_ptr, bias_ptr, chosen_ptr, out_ptr, N, K, eps, alpha, limit, BN: tl.constexpr,
          BK: tl.constexpr, ONCE: tl.constexpr, NORM: tl.constexpr, ACT: tl.constexpr, CLAMPED: tl.constexpr,
          INTERLEAVED: tl.constexpr, BIAS: tl.constexpr, CHOSEN: tl.constexpr, ROWS: tl.constexpr,
          PDL: tl.constexpr):  # fmt: skip
    """Compute out [B, CHOSEN, N] = act(gate) * up of norm(x) [B, K] by the chosen experts. Grid (B CHOSEN N / BN,)."""
    place, tile = place_of(ROWS * CHOSEN)
    n = tile * BN + tl.arange(0, BN)
    inside = n < N
    gate, up = _halves(n, N, INTERLEAVED)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    expert = tl.load(chosen_ptr + place).to(tl.int64)
    w_ptr += expert * 2 * N * K
    a = read_tile(w_ptr, gate, inside, tl.arange(0, BK), K)
    b = read_tile(w_ptr, up, inside, tl.arange(0, BK), K)
    source = x_ptr + place // CHOSEN * K, x_ptr, x_ptr, 0.0
    a, b, inverse, _ = both(source, gain_ptr, w_ptr, a, b, gate, up, inside, K, eps, BN, BK, ONCE, NORM, False)
    a *= inverse
    b *= inverse
    if BIAS:
        a += tl.load(bias_ptr + expert * 2 * N + gate, mask=inside, other=0.0).to(tl.float32)
        b += tl.load(bias_ptr + expert * 2 * N + up, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + place * N + n, _gate(a, b, alpha, limit, ACT, CLAMPED), mask=inside)


@triton.jit
def _chosen_tile(w_ptr, starts, chosen, rows, inside, k, K):
    """Load rows of all chosen experts' weights: [BN, CP, BK]."""
    mask = inside[:, None, None] & chosen[None, :, None] & (k < K)[None, None, :]
    return tl.load(w_ptr + starts[None, :, None] + rows[:, None, None] * K + k[None, None, :], mask=mask, other=0.0)


@triton.jit
def down(x_ptr, w_ptr, bias_ptr, chosen_ptr, shares_ptr, out_ptr, N, K, factor, BN: tl.constexpr, BK: tl.constexpr,
         ADD: tl.constexpr, BIAS: tl.constexpr, CHOSEN: tl.constexpr, CP: tl.constexpr, ROWS: tl.constexpr,
         PDL: tl.constexpr):  # fmt: skip
    """Compute out [B, N] = factor times the sum of x [B, CHOSEN, K] by the chosen experts, or out += that with ADD.

    Grid (B N / BN,).
    """
    row, tile = place_of(ROWS)
    rows = tile * BN + tl.arange(0, BN)
    inside = rows < N
    j = tl.arange(0, CP)
    k = tl.arange(0, BK)
    # What was chosen was written two launches ago, and the kernel between has waited for it.
    experts = tl.load(chosen_ptr + row * CHOSEN + j, mask=j < CHOSEN, other=0).to(tl.int64)
    starts = experts * N * K
    shares = tl.load(shares_ptr + row * CHOSEN + j, mask=j < CHOSEN, other=0.0)
    w = _chosen_tile(w_ptr, starts, j < CHOSEN, rows, inside, k, K)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    old = 0.0
    if ADD:
        old = tl.load(out_ptr + row * N + rows, mask=inside, other=0.0)
    acc = tl.zeros([BN, CP, BK], tl.float32)
    x_at = x_ptr + (row * CHOSEN + j[:, None]) * K + k[None, :]
    for start in range(0, K, BK):
        following = _chosen_tile(w_ptr, starts, j < CHOSEN, rows, inside, k + start + BK, K)
        x = tl.load(x_at + start, mask=(j < CHOSEN)[:, None] & (start + k < K)[None, :], other=0.0).to(tl.float32)
        acc += w.to(tl.float32) * (x * shares[:, None])[None, :, :]
        w = following
    sums = tl.sum(tl.sum(acc, 2), 1)
    if BIAS:
        bias_at = bias_ptr + experts[None, :] * N + rows[:, None]
        bias = tl.load(bias_at, mask=inside[:, None] & (j < CHOSEN)[None, :], other=0.0).to(tl.float32)
        sums += tl.sum(bias * shares[None, :], 1)
    tl.store(out_ptr + row * N + rows, old + factor * sums, mask=inside)


@triton.jit
def group(chosen_ptr, order_ptr, tiles_ptr, used_ptr, COUNT, TILES, BM: tl.constexpr, BC: tl.constexpr,
          PDL: tl.constexpr):  # fmt: skip
    """Write the places of COUNT choices to `order`, by expert, and cut each expert's into tiles. Grid (X,).

    Tiles [3, TILES]: expert, first place in `order`, places. They come in any order, which changes no sum.
    """
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    expert = tl.program_id(0)
    a = tl.arange(0, BC)
    before = 0
    own = 0
    for first in range(0, COUNT, BC):
        ids = tl.load(chosen_ptr + first + a, mask=first + a < COUNT, other=1 << 30)
        before += tl.sum((ids < expert).to(tl.int32), 0)
        own += tl.sum((ids == expert).to(tl.int32), 0)
    count = tl.cdiv(own, BM)
    if own > 0:
        tile = tl.atomic_add(used_ptr, count)
        for number in range(count):
            tl.store(tiles_ptr + tile + number, expert)
            tl.store(tiles_ptr + TILES + tile + number, before + number * BM)
            tl.store(tiles_ptr + 2 * TILES + tile + number, tl.minimum(own - number * BM, BM))
        for first in range(0, COUNT, BC):
            mine = tl.load(chosen_ptr + first + a, mask=first + a < COUNT, other=1 << 30) == expert
            at = before + tl.cumsum(mine.to(tl.int32), 0) - 1
            tl.store(order_ptr + at, first + a, mask=mine)
            before += tl.sum(mine.to(tl.int32), 0)


@triton.jit
def _grouped(tile, order_ptr, tiles_ptr, TILES, BM: tl.constexpr):
    """Return expert, places of choices [BM], and which of them there are, of a tile."""
    m = tl.arange(0, BM)
    expert = tl.load(tiles_ptr + tile).to(tl.int64)
    inside = m < tl.load(tiles_ptr + 2 * TILES + tile)
    places = tl.load(order_ptr + tl.load(tiles_ptr + TILES + tile) + m, mask=inside, other=0).to(tl.int64)
    return expert, places, inside


@triton.jit
def grouped_gated(x_ptr, w_ptr, bias_ptr, order_ptr, tiles_ptr, used_ptr, out_ptr, N, K, TILES, alpha, limit,
                  BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, ACT: tl.constexpr, CLAMPED: tl.constexpr,
                  INTERLEAVED: tl.constexpr, BIAS: tl.constexpr, CHOSEN: tl.constexpr,
                  PRECISION: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    """Compute out [B CHOSEN, N] = act(gate) * up of x [B, K], each choice by its expert. Grid (TILES * N / BN,)."""
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    blocks = tl.cdiv(N, BN)
    tile = tl.program_id(0) // blocks
    if tile < tl.load(used_ptr):
        expert, places, there = _grouped(tile, order_ptr, tiles_ptr, TILES, BM)
        n = (tl.program_id(0) % blocks) * BN + tl.arange(0, BN)
        k = tl.arange(0, BK)
        x_at = x_ptr + (places // CHOSEN)[:, None] * K + k[None, :]
        a_rows, b_rows = _halves(n, N, INTERLEAVED)
        a_at = w_ptr + (expert * 2 * N + a_rows)[:, None] * K + k[None, :]
        b_at = w_ptr + (expert * 2 * N + b_rows)[:, None] * K + k[None, :]
        gate = tl.zeros([BM, BN], tl.float32)
        up = tl.zeros([BM, BN], tl.float32)
        for start in range(0, K, BK):
            inside = (start + k < K)[None, :]
            x = tl.load(x_at + start, mask=there[:, None] & inside, other=0.0)
            a = tl.load(a_at + start, mask=(n < N)[:, None] & inside, other=0.0)
            b = tl.load(b_at + start, mask=(n < N)[:, None] & inside, other=0.0)
            gate = tl.dot(x, tl.trans(a), gate, input_precision=PRECISION)
            up = tl.dot(x, tl.trans(b), up, input_precision=PRECISION)
        if BIAS:
            gate += tl.load(bias_ptr + expert * 2 * N + a_rows, mask=n < N, other=0.0).to(tl.float32)[None, :]
            up += tl.load(bias_ptr + expert * 2 * N + b_rows, mask=n < N, other=0.0).to(tl.float32)[None, :]
        out = _gate(gate, up, alpha, limit, ACT, CLAMPED)
        at = out_ptr + places[:, None] * N + n[None, :]
        tl.store(at, out.to(out_ptr.dtype.element_ty), mask=there[:, None] & (n < N)[None, :])


@triton.jit
def grouped_down(x_ptr, w_ptr, bias_ptr, order_ptr, tiles_ptr, used_ptr, shares_ptr, out_ptr, N, K, TILES,
                 BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BIAS: tl.constexpr, PRECISION: tl.constexpr,
                 PDL: tl.constexpr):  # fmt: skip
    """Compute out [B CHOSEN, N] of x [B CHOSEN, K], each choice by its expert times its share.

    Grid (TILES * N / BN,).
    """
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    blocks = tl.cdiv(N, BN)
    tile = tl.program_id(0) // blocks
    if tile < tl.load(used_ptr):
        expert, places, there = _grouped(tile, order_ptr, tiles_ptr, TILES, BM)
        n = (tl.program_id(0) % blocks) * BN + tl.arange(0, BN)
        k = tl.arange(0, BK)
        x_at = x_ptr + places[:, None] * K + k[None, :]
        w_at = w_ptr + (expert * N + n)[:, None] * K + k[None, :]
        acc = tl.zeros([BM, BN], tl.float32)
        for start in range(0, K, BK):
            inside = (start + k < K)[None, :]
            x = tl.load(x_at + start, mask=there[:, None] & inside, other=0.0)
            w = tl.load(w_at + start, mask=(n < N)[:, None] & inside, other=0.0)
            acc = tl.dot(x, tl.trans(w), acc, input_precision=PRECISION)
        if BIAS:
            acc += tl.load(bias_ptr + expert * N + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
        acc *= tl.load(shares_ptr + places, mask=there, other=0.0)[:, None]
        at = out_ptr + places[:, None] * N + n[None, :]
        tl.store(at, acc.to(out_ptr.dtype.element_ty), mask=there[:, None] & (n < N)[None, :])


@triton.jit
def combine(x_ptr, out_ptr, N, BN: tl.constexpr, CHOSEN: tl.constexpr, PDL: tl.constexpr):
    """Compute out [B, N], the sum of x [B, CHOSEN, N], in the order of the choices. Grid (B, N / BN)."""
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    row = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    total = tl.zeros([BN], tl.float32)
    for number in tl.static_range(CHOSEN):
        total += tl.load(x_ptr + (row * CHOSEN + number) * N + n, mask=n < N, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * N + n, total, mask=n < N)
