"""Triton kernels of encoders whose attention reads positions, and of norms and gates as ModernBERT has them.

Packing and PDL are as in `scoring.kernels.encoder`; a token's place in its row is `places` less the row's start.
"""

# mypy: ignore-errors
# ruff: noqa: N803, N806, SIM108

import triton
import triton.language as tl

from scoring.kernels.encoder import _activate, _after_predecessor, _normalise, _prefetch_rows

LOG2_E = tl.constexpr(1.4426950408889634)
NEVER = tl.constexpr(-1e30)  # finite: a block of keys may have none that a query sees


@triton.jit
def _weigh(scores, peak, norm, acc, values):
    """One step of a running softmax over blocks of keys."""
    higher = tl.maximum(peak, tl.max(scores, 1))
    weights = tl.exp2(scores - higher[:, None])
    fade = tl.exp2(peak - higher)
    norm = norm * fade + tl.sum(weights, 1)
    acc = tl.dot(weights.to(values.dtype), values, acc * fade[:, None])
    return higher, norm, acc


@triton.jit
def _turned(x, cos, sin, at, to, inside, HALF: tl.constexpr):
    """Load both halves of vectors at the pointers `x`, turned by the angles of the places whose rows are at `at`."""
    first = tl.load(x, mask=inside, other=0.0)
    second = tl.load(x + HALF, mask=inside, other=0.0)
    c, s = tl.load(cos + at), tl.load(sin + at)
    return (first * c - second * s).to(to), (second * c + first * s).to(to)


@triton.jit
def rotary_attention_kernel(
    qkv, out,  # [rows, 3 * H * 2 * HALF]: queries, keys, values, each head after head; [rows, H * 2 * HALF]
    places, bounds,
    cos, sin,  # [P, HALF] float32
    scale,  # 1 / sqrt(D) times log2(e)
    S,
    HEADS: tl.constexpr, HALF: tl.constexpr,
    REACH: tl.constexpr,  # keys farther away are not seen; 0: all are
    BM: tl.constexpr, BN: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Softmax attention of one block of queries of one head of one row; queries and keys are turned as read."""
    block, head, row = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    _after_predecessor(PDL)
    start = tl.load(bounds + row)
    length = tl.load(bounds + row + 1) - start
    if block * BM >= length:
        return
    D: tl.constexpr = 2 * HALF
    WIDTH: tl.constexpr = HEADS * D
    m = block * BM + tl.arange(0, BM)
    n = tl.arange(0, BN)
    d = tl.arange(0, D)
    h = tl.arange(0, HALF)
    base = qkv + start * (3 * WIDTH) + head * D
    inside = m[:, None] < length
    m_at = tl.load(places + start + m, mask=m < length, other=row * S) - row * S
    kind = qkv.dtype.element_ty
    q = base + m[:, None] * (3 * WIDTH) + h[None, :]
    one, other = _turned(q, cos, sin, m_at[:, None] * HALF + h[None, :], kind, inside, HALF)
    peak = tl.full((BM,), NEVER, tl.float32)
    norm = tl.zeros((BM,), tl.float32)
    acc = tl.zeros((BM, D), tl.float32)
    first, last = 0, length
    if REACH:
        first = tl.maximum(block * BM - REACH, 0) // BN * BN
        last = tl.minimum(length, block * BM + BM + REACH)
    for j in range(first, last, BN):
        live = j + n < length
        at = (j + n) * (3 * WIDTH)
        n_at = tl.load(places + start + j + n, mask=live, other=row * S) - row * S
        k = base + WIDTH + at[None, :] + h[:, None]
        k1, k2 = _turned(k, cos, sin, n_at[None, :] * HALF + h[:, None], kind, live[None, :], HALF)
        scores = tl.dot(other, k2, tl.dot(one, k1)) * scale
        values = tl.load(base + 2 * WIDTH + at[:, None] + d[None, :], mask=live[:, None], other=0.0)
        seen = live[None, :]
        if REACH:
            seen = seen & (tl.abs(m_at[:, None] - n_at[None, :]) <= REACH)
        peak, norm, acc = _weigh(tl.where(seen, scores, NEVER), peak, norm, acc, values)
    to = out + (start + m)[:, None] * WIDTH + head * D + d[None, :]
    tl.store(to, (acc / norm[:, None]).to(out.dtype.element_ty), mask=inside)


@triton.jit
def distance_kernel(
    qkv,  # [rows, 3 * H * D]
    keys,  # [C, H * D]: what queries are multiplied with
    queries,  # [C, H * D]: what keys are multiplied with
    out,  # [KINDS, H, rows, W]
    total,  # pointer to the number of live rows
    rows,
    low,  # first column
    columns,  # C
    HEADS: tl.constexpr,
    D: tl.constexpr,
    W: tl.constexpr,
    FIRST: tl.constexpr,  # 0: queries with keys come first; 1: only keys with queries are wanted
    BM: tl.constexpr,
    BN: tl.constexpr,
    PDL: tl.constexpr,
):
    """Products of all queries, or keys, with the columns `low` to `low + W` of a table of distances."""
    pid_n, pid_m, pid = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    head, kind = pid % HEADS, pid // HEADS + FIRST
    WIDTH: tl.constexpr = HEADS * D
    m = pid_m * BM + tl.arange(0, BM)
    n = pid_n * BN + tl.arange(0, BN)
    d = tl.arange(0, D)
    at = (low + n)[None, :] * WIDTH + head * D + d[:, None]
    known = (low + n < columns)[None, :]
    if kind == 0:
        table = tl.load(keys + at, mask=known, other=0.0)
    else:
        table = tl.load(queries + at, mask=known, other=0.0)
    _after_predecessor(PDL)
    if pid_m * BM >= tl.load(total):
        return
    x = tl.load(qkv + m[:, None] * (3 * WIDTH) + kind * WIDTH + head * D + d[None, :])
    to = out + (pid.to(tl.int64) * rows + m[:, None]) * W + n[None, :]
    tl.store(to, tl.dot(x, table).to(out.dtype.element_ty))


@triton.jit
def _distance_scores(scores, by_query, by_key, own, others, column, both, scale, BY_QUERY: tl.constexpr,
                     BY_KEY: tl.constexpr):  # fmt: skip
    """Scale scores with what `distance_kernel` made for these queries' and keys' rows."""
    if BY_QUERY:
        scores += tl.load(by_query + own[:, None] + column, mask=both, other=0.0).to(tl.float32)
    if BY_KEY:
        scores += tl.load(by_key + others[None, :] + column, mask=both, other=0.0).to(tl.float32)
    return scores * scale


@triton.jit
def relative_attention_kernel(
    qkv, out, places, bounds,
    by_query, by_key,  # [H, rows, W] of distance_kernel
    bias,  # [H, C] float32
    columns,  # [2 * reach + 1] int32
    scale,  # of the products, times log2(e)
    rows,
    low,
    HEADS: tl.constexpr, D: tl.constexpr, W: tl.constexpr, REACH: tl.constexpr, C: tl.constexpr,
    BY_QUERY: tl.constexpr, BY_KEY: tl.constexpr, BIAS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Softmax attention of one block of queries of one head of one row, with scores of their distances from keys."""
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
    inside = m[:, None] < length
    q = tl.load(base + m[:, None] * (3 * WIDTH) + d[None, :], mask=inside, other=0.0)
    m_at = tl.load(places + start + m, mask=m < length, other=0)
    own = (head.to(tl.int64) * rows + start + m) * W - low
    peak = tl.full((BM,), NEVER, tl.float32)
    norm = tl.zeros((BM,), tl.float32)
    acc = tl.zeros((BM, D), tl.float32)
    for j in range(0, length, BN):
        live = j + n < length
        at = (j + n) * (3 * WIDTH)
        keys = tl.load(base + WIDTH + at[None, :] + d[:, None], mask=live[None, :], other=0.0)
        values = tl.load(base + 2 * WIDTH + at[:, None] + d[None, :], mask=live[:, None], other=0.0)
        both = inside & live[None, :]
        n_at = tl.load(places + start + j + n, mask=live, other=0)
        apart = tl.minimum(tl.maximum(m_at[:, None] - n_at[None, :], -REACH), REACH)
        column = tl.load(columns + REACH + apart, mask=both, other=0)
        others = (head.to(tl.int64) * rows + start + j + n) * W - low
        scores = tl.dot(q, keys)
        scores = _distance_scores(scores, by_query, by_key, own, others, column, both, scale, BY_QUERY, BY_KEY)
        if BIAS:
            scores += tl.load(bias + head * C + column, mask=both, other=0.0) * LOG2_E
        peak, norm, acc = _weigh(tl.where(live[None, :], scores, NEVER), peak, norm, acc, values)
    to = out + (start + m)[:, None] * WIDTH + head * D + d[None, :]
    tl.store(to, (acc / norm[:, None]).to(out.dtype.element_ty), mask=inside)


@triton.jit
def gated_kernel(
    x,  # [rows, K]
    w,  # [2 * N, K]
    bias,  # [2 * N]
    out,  # [rows, N]
    total,
    N: tl.constexpr,
    K: tl.constexpr,
    ACT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    SKIP: tl.constexpr,
    PREFETCH: tl.constexpr,
    LINE: tl.constexpr,
    PDL: tl.constexpr,
):
    """Compute out = act(x w1^T) * (x w2^T), where w1 and w2 are the halves of w."""
    pid_n, pid_m = tl.program_id(0), tl.program_id(1)
    m = pid_m * BM + tl.arange(0, BM)
    n = pid_n * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    _prefetch_rows(w + n * K, K, PREFETCH, LINE)
    _prefetch_rows(w + (N + n) * K, K, PREFETCH, LINE)
    _after_predecessor(PDL)
    if SKIP and pid_m * BM >= tl.load(total):
        return
    xs = x + m[:, None] * K + k[None, :]
    ws = w + n[None, :] * K + k[:, None]
    first = tl.zeros((BM, BN), tl.float32)
    second = tl.zeros((BM, BN), tl.float32)
    for _ in range(0, K, BK):
        part = tl.load(xs)
        first = tl.dot(part, tl.load(ws), first)
        second = tl.dot(part, tl.load(ws + N * K), second)
        xs += BK
        ws += BK
    if HAS_BIAS:
        first += tl.load(bias + n).to(tl.float32)[None, :]
        second += tl.load(bias + N + n).to(tl.float32)[None, :]
    tl.store(out + m[:, None] * N + n[None, :], (_activate(first, ACT) * second).to(out.dtype.element_ty))


@triton.jit
def gate_kernel(
    x,  # [rows, 2 * N]
    out,  # [rows, N]
    N: tl.constexpr,
    BLOCK: tl.constexpr,
    ACT: tl.constexpr,
):
    """Compute out = act(first half of x) * second half."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < N
    first = tl.load(x + row * 2 * N + at, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(x + row * 2 * N + N + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * N + at, (_activate(first, ACT) * second).to(out.dtype.element_ty), mask=inside)


@triton.jit
def add_and_norm_kernel(
    parts,  # [SPLIT, rows, N]
    bias,  # [N]
    residual,  # [rows, N]
    gamma,
    beta,
    kept,  # [rows, N]: the sum
    out,  # [rows, N] packed, or [B * S, N] in the batch's own places when UNPACK
    places,
    total,
    rows,
    N: tl.constexpr,
    BLOCK: tl.constexpr,
    SPLIT: tl.constexpr,
    EPS: tl.constexpr,
    UNPACK: tl.constexpr,
    PDL: tl.constexpr,
):
    """Compute kept = sum of parts + bias + residual and out = LayerNorm(kept), a token per program."""
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
        tl.store(kept + token * N + at, x.to(kept.dtype.element_ty), mask=inside)
        tl.store(out + to * N + at, y.to(out.dtype.element_ty), mask=inside)
    elif UNPACK:
        tl.store(out + to * N + at, tl.zeros((BLOCK,), out.dtype.element_ty), mask=inside)
