"""Triton kernels of a post-norm encoder over packed tokens.

Tokens of a batch [B, S] are packed: live ones first, row after row, padding last. `bounds` [B + 1] holds where each
row's live tokens start, `bounds[B]` their total T. Matrix buffers have a row count that is a multiple of the tile;
rows from T on are undefined and never read by a live row.

PDL: with programmatic dependent launch a kernel starts while its predecessor runs, does what depends on weights only
(prefetching them into the L2 cache), and waits before it touches activations. Every kernel waits before it lets its
successor start, so whatever was written two launches ago is visible even before the wait.
"""

# mypy: ignore-errors
# ruff: noqa: N803, N806, SIM108

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

NONE, GELU, RELU = 0, 1, 2


@triton.jit
def _after_predecessor(PDL: tl.constexpr):
    if PDL:
        gdc_wait()
        gdc_launch_dependents()


@triton.jit
def _prefetch(pointers):
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; // $0", "=r,l", [pointers.to(tl.int64)], dtype=tl.int32, is_pure=False, pack=1
    )


@triton.jit
def _prefetch_rows(rows, DEPTH: tl.constexpr, PREFETCH: tl.constexpr, LINE: tl.constexpr):
    """Prefetch DEPTH numbers from each of the pointers `rows` on, PREFETCH lines at a time; 0: none."""
    if PREFETCH:
        for j in tl.static_range(0, DEPTH // LINE, PREFETCH):
            _prefetch(rows[:, None] + ((j + tl.arange(0, PREFETCH)) * LINE)[None, :])


@triton.jit
def pack_kernel(
    ids,  # [B, S] int64
    mask,  # [B, S] int64
    places,  # out [B * S] int32: flat place in [B, S] of each packed token
    positions,  # out [B * S] int32: row of the position table
    bounds,  # out [B + 1] int32
    S: tl.constexpr,
    BLOCK: tl.constexpr,
    PAD: tl.constexpr,  # id that takes no position; -1: positions count from 0
    HAS_MASK: tl.constexpr,
):
    row, rows = tl.program_id(0), tl.num_programs(0)
    at = tl.arange(0, BLOCK)
    before = 0
    total = 0
    for other in range(rows):
        if HAS_MASK:
            live = (tl.load(mask + other * S + at, mask=at < S, other=0) != 0).to(tl.int32)
        else:
            live = (at < S).to(tl.int32)
        count = tl.sum(live, 0)
        before += tl.where(other < row, count, 0)
        total += count
    if HAS_MASK:
        live = (tl.load(mask + row * S + at, mask=at < S, other=0) != 0).to(tl.int32)
    else:
        live = (at < S).to(tl.int32)
    rank = tl.cumsum(live, 0)  # live tokens up to and including this one
    place = tl.where(live != 0, before + rank - 1, total + row * S - before + at - rank)
    if PAD >= 0:
        counted = (tl.load(ids + row * S + at, mask=at < S, other=PAD) != PAD).to(tl.int32)
        position = tl.cumsum(counted, 0) * counted + PAD
    else:
        position = at
    tl.store(places + place, row * S + at, mask=at < S)
    tl.store(positions + place, position, mask=at < S)
    tl.store(bounds + row, before)
    if row == rows - 1:
        tl.store(bounds + rows, total)


@triton.jit
def _normalise(x, at, gamma, beta, N: tl.constexpr, EPS: tl.constexpr):
    mean = tl.sum(x, 0) / N
    centred = tl.where(at < N, x - mean, 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, 0) / N + EPS)
    return centred * scale * gamma + beta


@triton.jit
def _narrow(y, at, inside, token, smooth, narrow, scales, N: tl.constexpr):
    """Write row `token` in eight bits after the next product's `smooth`, with its scale."""
    z = y * tl.load(smooth + at, mask=inside, other=0.0)
    if narrow.dtype.element_ty == tl.int8:
        scale = tl.maximum(tl.max(tl.abs(z), 0), 1e-12) / 127.0
        values = tl.floor(z / scale + 0.5).to(tl.int8)
    else:
        scale = tl.maximum(tl.max(tl.abs(z), 0), 1e-12) / 448.0
        values = (z / scale).to(narrow.dtype.element_ty)
    tl.store(narrow + token * N + at, values, mask=inside)
    tl.store(scales + token, scale)


@triton.jit
def embed_kernel(
    ids,  # [B, S] int64
    types,  # [B, S] int64
    places,
    positions,
    total,  # pointer to bounds[B]
    words,  # [V, N]
    position_table,  # [P, N]
    type_table,  # [Y, N]
    gamma,
    beta,
    out,  # [rows, N] packed
    smooth,  # [N], and out in eight bits with a scale a row, where NARROW
    narrow,
    scales,
    N: tl.constexpr,
    BLOCK: tl.constexpr,
    EPS: tl.constexpr,
    NARROW: tl.constexpr,
    HAS_POSITIONS: tl.constexpr,
    HAS_TYPES: tl.constexpr,  # a type table exists
    GIVEN_TYPES: tl.constexpr,  # else every token has type 0
    PDL: tl.constexpr,
):
    token = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    inside = at < N
    g = tl.load(gamma + at, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(beta + at, mask=inside, other=0.0).to(tl.float32)
    _after_predecessor(PDL)
    if token < tl.load(total):
        place = tl.load(places + token)
        word = tl.load(ids + place)
        x = tl.load(words + word * N + at, mask=inside, other=0.0).to(tl.float32)
        if HAS_POSITIONS:
            position = tl.load(positions + token).to(tl.int64)
            x += tl.load(position_table + position * N + at, mask=inside, other=0.0).to(tl.float32)
        if HAS_TYPES:
            kind = tl.load(types + place) if GIVEN_TYPES else 0
            x += tl.load(type_table + kind * N + at, mask=inside, other=0.0).to(tl.float32)
        y = _normalise(x, at, g, b, N, EPS)
        tl.store(out + token * N + at, y.to(out.dtype.element_ty), mask=inside)
        if NARROW:
            _narrow(y, at, inside, token, smooth, narrow, scales, N)


@triton.jit
def _activate(x, ACT: tl.constexpr):
    """Activate x; GELU's erf by Abramowitz and Stegun 7.1.26 is off by at most 1.5e-7, and has no branches."""
    if ACT == 1:
        z = tl.abs(x) * 0.7071067811865476
        t = 1.0 / (1.0 + 0.3275911 * z)
        tail = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
        erf = 1.0 - tail * tl.exp2(z * z * -1.4426950408889634)
        x = 0.5 * x + 0.5 * tl.abs(x) * erf
    if ACT == 2:
        x = tl.maximum(x, 0.0)
    return x


@triton.jit
def _widen(acc, x_scales, w_scales):
    return acc.to(tl.float32) * x_scales[:, None] * w_scales[None, :]


@triton.jit
def _store_product(acc, bias, x_scales, w_scales, out, rows, pid_k, m, n, N: tl.constexpr, PARTIAL: tl.constexpr,
                   ACT: tl.constexpr, NARROW: tl.constexpr):  # fmt: skip
    """Store a tile of a product: of slice `pid_k` as it is where PARTIAL, else with bias and activation."""
    if NARROW:
        acc = _widen(acc, tl.load(x_scales + m), tl.load(w_scales + n))
    if PARTIAL:
        to = out + pid_k.to(tl.int64) * rows * N + m[:, None] * N + n[None, :]
    else:
        acc += tl.load(bias + n).to(tl.float32)[None, :]
        acc = _activate(acc, ACT)
        to = out + m[:, None] * N + n[None, :]
    tl.store(to, acc.to(out.dtype.element_ty))


@triton.jit
def linear_kernel(
    x,  # [rows, K]
    w,  # [N, K]
    bias,  # [N]; unused when PARTIAL
    x_scales,  # [rows] and [N], where x and w have eight bits
    w_scales,
    out,  # [rows, N], or [SPLIT, rows, N] when PARTIAL
    total,  # pointer to the number of live rows
    rows,
    N: tl.constexpr,
    K: tl.constexpr,
    SPLIT: tl.constexpr,
    PARTIAL: tl.constexpr,
    ACT: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    SKIP: tl.constexpr,  # tiles past the live rows return at once
    PREFETCH: tl.constexpr,  # lines at a time, a power of two; 0: none
    LINE: tl.constexpr,  # numbers in a line of 128 bytes
    NARROW: tl.constexpr,  # eight bits
    PDL: tl.constexpr,
):
    """Compute out = act(x w^T + bias); PARTIAL: slice `pid_k` of K only, no bias; the next kernel sums the slices."""
    pid_n, pid_m, pid_k = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    DEPTH: tl.constexpr = K // SPLIT
    m = pid_m * BM + tl.arange(0, BM)
    n = pid_n * BN + tl.arange(0, BN)
    k = pid_k * DEPTH + tl.arange(0, BK)
    _prefetch_rows(w + n * K + pid_k * DEPTH, DEPTH, PREFETCH, LINE)
    _after_predecessor(PDL)
    if SKIP and pid_m * BM >= tl.load(total):
        return
    xs = x + m[:, None] * K + k[None, :]
    ws = w + n[None, :] * K + k[:, None]
    acc = tl.zeros((BM, BN), tl.int32 if w.dtype.element_ty == tl.int8 else tl.float32)
    for _ in range(0, DEPTH, BK):
        acc = tl.dot(tl.load(xs), tl.load(ws), acc, out_dtype=acc.dtype)
        xs += BK
        ws += BK
    _store_product(acc, bias, x_scales, w_scales, out, rows, pid_k, m, n, N, PARTIAL, ACT, NARROW)


@triton.jit
def linear_tma_kernel(
    x,  # descriptor of [rows, K], block [BM, BK]
    w,  # descriptor of [N, K], block [BN, BK]
    w_pointer,  # [N, K], for the prefetch
    bias,
    x_scales,
    w_scales,
    out,
    total,
    rows,
    N: tl.constexpr,
    K: tl.constexpr,
    SPLIT: tl.constexpr,
    PARTIAL: tl.constexpr,
    ACT: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    SKIP: tl.constexpr,
    PREFETCH: tl.constexpr,
    LINE: tl.constexpr,
    NARROW: tl.constexpr,
    PDL: tl.constexpr,
):
    """`linear_kernel` with tiles moved by the tensor memory accelerator (Hopper and later)."""
    pid_n, pid_m, pid_k = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    DEPTH: tl.constexpr = K // SPLIT
    m = pid_m * BM + tl.arange(0, BM)
    n = pid_n * BN + tl.arange(0, BN)
    _prefetch_rows(w_pointer + n * K + pid_k * DEPTH, DEPTH, PREFETCH, LINE)
    _after_predecessor(PDL)
    if SKIP and pid_m * BM >= tl.load(total):
        return
    acc = tl.zeros((BM, BN), tl.int32 if w_pointer.dtype.element_ty == tl.int8 else tl.float32)
    for k in range(pid_k * DEPTH, pid_k * DEPTH + DEPTH, BK):
        acc = tl.dot(x.load([pid_m * BM, k]), w.load([pid_n * BN, k]).T, acc, out_dtype=acc.dtype)
    _store_product(acc, bias, x_scales, w_scales, out, rows, pid_k, m, n, N, PARTIAL, ACT, NARROW)


@triton.jit
def attention_kernel(
    qkv,  # [rows, 3 * H * D]: queries, keys, values, each head after head
    out,  # [rows, H * D]
    bounds,
    scale,  # 1 / sqrt(D) times log2(e)
    HEADS: tl.constexpr,
    D: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    PDL: tl.constexpr,
):
    """Softmax attention of one block of queries of one head of one row, over the row's live keys only."""
    block, head, row = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    _after_predecessor(PDL)
    start = tl.load(bounds + row)
    length = tl.load(bounds + row + 1) - start
    if block * BM >= length:
        return
    WIDTH: tl.constexpr = HEADS * D
    m = block * BM + tl.arange(0, BM)
    n = tl.arange(0, BN)
    d = tl.arange(0, D)
    base = qkv + start * (3 * WIDTH) + head * D
    q = tl.load(base + m[:, None] * (3 * WIDTH) + d[None, :], mask=m[:, None] < length, other=0.0)
    peak = tl.full((BM,), -float("inf"), tl.float32)
    norm = tl.zeros((BM,), tl.float32)
    acc = tl.zeros((BM, D), tl.float32)
    for j in range(0, length, BN):
        live = j + n < length
        at = (j + n) * (3 * WIDTH)
        keys = tl.load(base + WIDTH + at[None, :] + d[:, None], mask=live[None, :], other=0.0)
        values = tl.load(base + 2 * WIDTH + at[:, None] + d[None, :], mask=live[:, None], other=0.0)
        scores = tl.where(live[None, :], tl.dot(q, keys) * scale, -float("inf"))
        higher = tl.maximum(peak, tl.max(scores, 1))
        weights = tl.exp2(scores - higher[:, None])
        fade = tl.exp2(peak - higher)
        norm = norm * fade + tl.sum(weights, 1)
        acc = tl.dot(weights.to(values.dtype), values, acc * fade[:, None])
        peak = higher
    acc = acc / norm[:, None]
    to = out + (start + m)[:, None] * WIDTH + head * D + d[None, :]
    tl.store(to, acc.to(out.dtype.element_ty), mask=m[:, None] < length)


@triton.jit
def add_norm_kernel(
    parts,  # [SPLIT, rows, N]
    bias,  # [N]
    residual,  # [rows, N]
    gamma,
    beta,
    out,  # [rows, N] packed, or [B * S, N] in the batch's own places when UNPACK
    smooth,
    narrow,
    scales,
    places,
    total,
    rows,
    N: tl.constexpr,
    BLOCK: tl.constexpr,
    SPLIT: tl.constexpr,
    EPS: tl.constexpr,
    NARROW: tl.constexpr,
    UNPACK: tl.constexpr,
    PDL: tl.constexpr,
):
    """Compute out = LayerNorm(sum of parts + bias + residual), a token per program; UNPACK writes zeros for padding."""
    token = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    inside = at < N
    g = tl.load(gamma + at, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(beta + at, mask=inside, other=0.0).to(tl.float32)
    x = tl.load(bias + at, mask=inside, other=0.0).to(tl.float32)
    live = token < tl.load(total)
    to = token
    if UNPACK:
        to = tl.load(places + token)
    _after_predecessor(PDL)
    if live:
        x += tl.load(residual + token * N + at, mask=inside, other=0.0).to(tl.float32)
        for part in tl.static_range(0, SPLIT):
            x += tl.load(parts + (part * rows + token) * N + at, mask=inside, other=0.0).to(tl.float32)
        y = _normalise(x, at, g, b, N, EPS)
        tl.store(out + to * N + at, y.to(out.dtype.element_ty), mask=inside)
        if NARROW:
            _narrow(y, at, inside, token, smooth, narrow, scales, N)
    elif UNPACK:
        tl.store(out + to * N + at, tl.zeros((BLOCK,), out.dtype.element_ty), mask=inside)
