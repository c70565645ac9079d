"""Products of single rows (GEMV): weights stream once through the multiprocessors, with surrounding operations fused.

All of them read x [B, K] and weights [N, K]; a program owns a few rows of one batch row. With PDL the first tile of
weights is being loaded before the kernel waits for the one that produces x; with AHEAD, the L2 cache fetches all of a
program's rows, by an instruction each or for all, which reads memory faster than the loads alone.

RMSNorm and LayerNorm need no pass of their own: their statistics are summed along with the product, and
  rms:    y = r * sum(W g x)                    with r = 1 / sqrt(mean(x^2) + eps)
  layer:  y = r * (sum(W g x) - mean * W g) + W b   with W g and W b (the bias included) computed once at load.
"""

# mypy: ignore-errors
# ruff: noqa: N803, SIM108

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from scoring.kernels.decode_norms import added as _added
from scoring.kernels.decode_norms import inputs as _inputs
from scoring.kernels.decode_norms import statistics as _statistics


@triton.jit
def activation(x, ACT: tl.constexpr):
    """The MLP's function on float32."""
    if ACT == "relu":
        x = tl.maximum(x, 0.0)
    elif ACT == "silu":
        x = x * tl.sigmoid(x)
    elif ACT == "gelu":
        x = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif ACT == "gelu_tanh":
        x = x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    return x


@triton.jit
def place_of(ROWS: tl.constexpr):
    """Return (row, tile) of a program: rows that read the same weights are adjacent."""
    program = tl.program_id(0).to(tl.int64)
    return program % ROWS, program // ROWS


_PREFETCH = tl.constexpr(
    "{ .reg .pred one; .reg .u32 t; mov.u32 t, %tid.x; setp.eq.u32 one, t, 0; "
    "@one cp.async.bulk.prefetch.L2.global [$1], $2; mov.u32 $0, 0; }"
)


@triton.jit
def _fetch(w_ptr, first, count, N, K):
    """Have the L2 cache fetch rows of weights [N, K], of those that there are."""
    count = tl.minimum(N - first, count)
    if count > 0:
        size = (count * K * (w_ptr.dtype.element_ty.primitive_bitwidth // 8)).to(tl.int32)
        tl.inline_asm_elementwise(_PREFETCH, "=r,l,r", [(w_ptr + first * K).to(tl.int64), size], tl.int32, False, 1)


@triton.jit
def read_tile(w_ptr, rows, inside, k, K):
    return tl.load(w_ptr + rows[:, None] * K + k[None, :], mask=inside[:, None] & (k < K)[None, :], other=0.0)


@triton.jit
def _one(source, gain_ptr, w_ptr, w, rows, inside, K, eps, BN: tl.constexpr, BK: tl.constexpr, ONCE: tl.constexpr,
         NORM: tl.constexpr, POST: tl.constexpr):  # fmt: skip
    """Return sums of BN rows, whose first tile w is already loaded, with 1/deviation and mean of x."""
    k = tl.arange(0, BK)
    if ONCE:
        x, scaled = _inputs(source, gain_ptr, k, K, NORM, POST)
        sums = tl.sum(w.to(tl.float32) * scaled[None, :], 1)
        inverse, mean = _statistics(x, x * x, K, eps, NORM)
    else:
        acc = tl.zeros([BN, BK], tl.float32)
        total = tl.zeros([BK], tl.float32)
        squares = tl.zeros([BK], tl.float32)
        for start in range(0, K, BK):
            following = read_tile(w_ptr, rows, inside, k + start + BK, K)
            x, scaled = _inputs(source, gain_ptr, k + start, K, NORM, POST)
            acc += w.to(tl.float32) * scaled[None, :]
            if NORM != "none":
                total += x
                squares += x * x
            w = following
        sums = tl.sum(acc, 1)
        inverse, mean = _statistics(total, squares, K, eps, NORM)
    return sums, inverse, mean


@triton.jit
def both(source, gain_ptr, w_ptr, a, b, rows_a, rows_b, inside, K, eps, BN: tl.constexpr, BK: tl.constexpr,
         ONCE: tl.constexpr, NORM: tl.constexpr, POST: tl.constexpr):  # fmt: skip
    """Do the same as `_one` for two sets of rows at once."""
    k = tl.arange(0, BK)
    if ONCE:
        x, scaled = _inputs(source, gain_ptr, k, K, NORM, POST)
        sums_a = tl.sum(a.to(tl.float32) * scaled[None, :], 1)
        sums_b = tl.sum(b.to(tl.float32) * scaled[None, :], 1)
        inverse, mean = _statistics(x, x * x, K, eps, NORM)
    else:
        acc_a = tl.zeros([BN, BK], tl.float32)
        acc_b = tl.zeros([BN, BK], tl.float32)
        total = tl.zeros([BK], tl.float32)
        squares = tl.zeros([BK], tl.float32)
        for start in range(0, K, BK):
            next_a = read_tile(w_ptr, rows_a, inside, k + start + BK, K)
            next_b = read_tile(w_ptr, rows_b, inside, k + start + BK, K)
            x, scaled = _inputs(source, gain_ptr, k + start, K, NORM, POST)
            acc_a += a.to(tl.float32) * scaled[None, :]
            acc_b += b.to(tl.float32) * scaled[None, :]
            if NORM != "none":
                total += x
                squares += x * x
            a = next_a
            b = next_b
        sums_a = tl.sum(acc_a, 1)
        sums_b = tl.sum(acc_b, 1)
        inverse, mean = _statistics(total, squares, K, eps, NORM)
    return sums_a, sums_b, inverse, mean


@triton.jit
def extras(rows, inside, scale_ptr, gains_ptr, bias_ptr, SCALE: tl.constexpr, NORM: tl.constexpr,
            BIAS: tl.constexpr):  # fmt: skip
    """Return (int8 scale, W g, bias) of rows: constants of the model, so they are read before any wait."""
    scale = 1.0
    gains = 0.0
    bias = 0.0
    if SCALE:
        scale = tl.load(scale_ptr + rows, mask=inside, other=0.0)
    if NORM == "layer":
        gains = tl.load(gains_ptr + rows, mask=inside, other=0.0)
    if BIAS:
        bias = tl.load(bias_ptr + rows, mask=inside, other=0.0).to(tl.float32)
    return scale, gains, bias


@triton.jit
def gemv(x_ptr, y_ptr, post_ptr, new_ptr, gain_ptr, w_ptr, scale_ptr, gains_ptr, bias_ptr, out_ptr, N, K,
         eps, post_eps, factor, BN: tl.constexpr, BK: tl.constexpr, ONCE: tl.constexpr, NORM: tl.constexpr,
         ACT: tl.constexpr, BIAS: tl.constexpr, SCALE: tl.constexpr, ADD: tl.constexpr, POST: tl.constexpr,
         ROWS: tl.constexpr, PDL: tl.constexpr, AHEAD: tl.constexpr):  # fmt: skip
    """Compute out [B, N] = factor act(norm(x) W^T + bias), or out += that with ADD. Grid (B N / BN,).

    With POST, x is first what `added` makes of it and y, and the factor is for that.
    """
    row, tile = place_of(ROWS)
    rows = tile * BN + tl.arange(0, BN)
    inside = rows < N
    w = read_tile(w_ptr, rows, inside, tl.arange(0, BK), K)
    scale, gains, bias = extras(rows, inside, scale_ptr, gains_ptr, bias_ptr, SCALE, NORM, BIAS)
    if PDL:
        if AHEAD:
            _fetch(w_ptr, tile * BN, BN, N, K)
        gdc_wait()
        gdc_launch_dependents()
    old = 0.0
    if ADD:
        old = tl.load(out_ptr + row * N + rows, mask=inside, other=0.0)
    source = _added(x_ptr, y_ptr, post_ptr, new_ptr, row, tile, K, post_eps, factor, BK, POST)
    sums, inverse, mean = _one(source, gain_ptr, w_ptr, w, rows, inside, K, eps, BN, BK, ONCE, NORM, POST)
    y = activation((sums * scale - mean * gains) * inverse + bias, ACT)
    if not POST:
        y *= factor
    tl.store(out_ptr + row * N + rows, old + y, mask=inside)


@triton.jit
def gemv_gated(x_ptr, y_ptr, post_ptr, new_ptr, gain_ptr, w_ptr, scale_ptr, gains_ptr, bias_ptr, out_ptr, N,
               K, eps, post_eps, factor, BN: tl.constexpr, BK: tl.constexpr, ONCE: tl.constexpr, NORM: tl.constexpr,
               ACT: tl.constexpr, BIAS: tl.constexpr, SCALE: tl.constexpr, POST: tl.constexpr, ROWS: tl.constexpr,
               PDL: tl.constexpr, AHEAD: tl.constexpr):  # fmt: skip
    """Compute out [B, N] = act(gate) * up over weights [2N, K], the gate's rows first. Grid (B N / BN,)."""
    row, tile = place_of(ROWS)
    gate = tile * BN + tl.arange(0, BN)
    inside = gate < N
    up = gate + N
    a = read_tile(w_ptr, gate, inside, tl.arange(0, BK), K)
    b = read_tile(w_ptr, up, inside, tl.arange(0, BK), K)
    a_scale, a_gains, a_bias = extras(gate, inside, scale_ptr, gains_ptr, bias_ptr, SCALE, NORM, BIAS)
    b_scale, b_gains, b_bias = extras(up, inside, scale_ptr, gains_ptr, bias_ptr, SCALE, NORM, BIAS)
    if PDL:
        if AHEAD:
            _fetch(w_ptr, tile * BN, BN, N, K)
            _fetch(w_ptr, N + tile * BN, BN, 2 * N, K)
        gdc_wait()
        gdc_launch_dependents()
    source = _added(x_ptr, y_ptr, post_ptr, new_ptr, row, tile, K, post_eps, factor, BK, POST)
    a, b, inverse, mean = both(source, gain_ptr, w_ptr, a, b, gate, up, inside, K, eps, BN, BK, ONCE, NORM, POST)
    a = (a * a_scale - mean * a_gains) * inverse + a_bias
    b = (b * b_scale - mean * b_gains) * inverse + b_bias
    tl.store(out_ptr + row * N + gate, activation(a, ACT) * b, mask=inside)


@triton.jit
def pair_places(p, D: tl.constexpr, HALF: tl.constexpr, INTERLEAVED: tl.constexpr):
    """Return the indices in a head of the two members of pair p (of D / 2); pairs past HALF are not rotated."""
    if INTERLEAVED:
        first = 2 * p
        second = 2 * p + 1
    else:
        first = tl.where(p < HALF, p, p + HALF)
        second = tl.where(p < HALF, p + HALF, p + D // 2)
    return first, second


@triton.jit
def table_row(position, long_ptr, LONG: tl.constexpr):
    """Return the row of the rotary tables for a position; with LONG, it is that many further if *long is 1."""
    row = position.to(tl.int64)
    if LONG > 0:
        row += tl.load(long_ptr).to(tl.int64) * LONG
    return row


@triton.jit
def rotation(position, part, pair, inside, cos_ptr, sin_ptr, D: tl.constexpr, ROTARY: tl.constexpr):
    """Return (cosine, sine) of pairs at a position; values are not rotated."""
    cos = 1.0
    sin = 0.0
    if ROTARY:
        at = position * (D // 2) + pair
        cos = tl.load(cos_ptr + at, mask=inside & (part < 2), other=1.0)
        sin = tl.load(sin_ptr + at, mask=inside & (part < 2), other=0.0)
    return cos, sin


@triton.jit
def cache_place(block, position, head, BLOCKS, BLOCK: tl.constexpr):
    """Place, in keys or values [KV, BLOCKS, BLOCK, D], of the token at a position, which is in this block."""
    return (head.to(tl.int64) * BLOCKS + block) * BLOCK + position % BLOCK


@triton.jit
def write_pair(a, b, cos, sin, first, second, row, block, position, part, head, inside, q_ptr, keys_ptr, values_ptr,
               BLOCKS, H: tl.constexpr, KV: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Rotate pairs, and write queries to q [B, H, D], keys and values to a block of the cache."""
    turned_a = a * cos - b * sin
    turned_b = b * cos + a * sin
    to_q = (row * H + head) * D
    to_cache = cache_place(block, position, head, BLOCKS, BLOCK) * D
    tl.store(q_ptr + to_q + first, turned_a, mask=inside & (part == 0))
    tl.store(q_ptr + to_q + second, turned_b, mask=inside & (part == 0))
    tl.store(keys_ptr + to_cache + first, turned_a, mask=inside & (part == 1))
    tl.store(keys_ptr + to_cache + second, turned_b, mask=inside & (part == 1))
    tl.store(values_ptr + to_cache + first, turned_a, mask=inside & (part == 2))
    tl.store(values_ptr + to_cache + second, turned_b, mask=inside & (part == 2))


@triton.jit
def split_heads(index, H: tl.constexpr, KV: tl.constexpr):
    """Return (part, head) of the index-th head of queries (part 0), then keys (1), then values (2)."""
    part = tl.where(index < H, 0, tl.where(index < H + KV, 1, 2))
    head = index - tl.where(part == 0, 0, tl.where(part == 1, H, H + KV))
    return part, head


@triton.jit
def pairs_of(index, H: tl.constexpr, KV: tl.constexpr, D: tl.constexpr, HALF: tl.constexpr, INTERLEAVED: tl.constexpr,
             PER_HEAD: tl.constexpr):  # fmt: skip
    """Return the rows of both members of the index-th pairs, and (pair, part, head, places in the head)."""
    pair = index % (D // 2)
    part, head = split_heads(index // (D // 2), H, KV)
    first, second = pair_places(pair, D, HALF, INTERLEAVED)
    if PER_HEAD:
        base = (head * 3 + part) * D
    else:
        base = (index // (D // 2)) * D
    return base + first, base + second, (pair, part, head, first, second)


@triton.jit
def gemv_qkv(x_ptr, y_ptr, post_ptr, new_ptr, gain_ptr, w_ptr, scale_ptr, gains_ptr, bias_ptr, q_ptr,
             keys_ptr, values_ptr, cos_ptr, sin_ptr, slots_ptr, lengths_ptr, table_ptr, long_ptr, K, WIDTH, BLOCKS, eps,
             post_eps, factor, BN: tl.constexpr, BK: tl.constexpr, ONCE: tl.constexpr, BLOCK: tl.constexpr,
             NORM: tl.constexpr, BIAS: tl.constexpr, SCALE: tl.constexpr, H: tl.constexpr, KV: tl.constexpr,
             D: tl.constexpr, HALF: tl.constexpr, INTERLEAVED: tl.constexpr, PER_HEAD: tl.constexpr,
             ROTARY: tl.constexpr, LONG: tl.constexpr, POST: tl.constexpr, ROWS: tl.constexpr, PDL: tl.constexpr,
             AHEAD: tl.constexpr):  # fmt: skip
    """Compute query, key and value of one token: norm, product, bias, rotation, and the cache write.

    Grid (B pairs / BN,); a program owns BN pairs of rows.
    """
    row, tile = place_of(ROWS)
    index = tile * BN + tl.arange(0, BN)
    inside = index < (H + 2 * KV) * (D // 2)
    a_rows, b_rows, place = pairs_of(index, H, KV, D, HALF, INTERLEAVED, PER_HEAD)
    pair, part, head, first, second = place
    a = read_tile(w_ptr, a_rows, inside, tl.arange(0, BK), K)
    b = read_tile(w_ptr, b_rows, inside, tl.arange(0, BK), K)
    a_scale, a_gains, a_bias = extras(a_rows, inside, scale_ptr, gains_ptr, bias_ptr, SCALE, NORM, BIAS)
    b_scale, b_gains, b_bias = extras(b_rows, inside, scale_ptr, gains_ptr, bias_ptr, SCALE, NORM, BIAS)
    # Slots, lengths and tables change only between steps, and the step's first kernel has waited for that.
    slot = tl.load(slots_ptr + row).to(tl.int64)
    position = tl.load(lengths_ptr + slot)
    block = tl.load(table_ptr + slot * WIDTH + position // BLOCK)
    cos, sin = rotation(table_row(position, long_ptr + slot, LONG), part, pair, inside, cos_ptr, sin_ptr, D, ROTARY)
    if PDL:
        if AHEAD:
            for member in tl.static_range(BN):
                one, other, _place = pairs_of(tile * BN + member, H, KV, D, HALF, INTERLEAVED, PER_HEAD)
                _fetch(w_ptr, one, 1, (H + 2 * KV) * D, K)
                _fetch(w_ptr, other, 1, (H + 2 * KV) * D, K)
        gdc_wait()
        gdc_launch_dependents()
    source = _added(x_ptr, y_ptr, post_ptr, new_ptr, row, tile, K, post_eps, factor, BK, POST)
    a, b, inverse, mean = both(source, gain_ptr, w_ptr, a, b, a_rows, b_rows, inside, K, eps, BN, BK, ONCE, NORM, POST)
    a = (a * a_scale - mean * a_gains) * inverse + a_bias
    b = (b * b_scale - mean * b_gains) * inverse + b_bias
    write_pair(a, b, cos, sin, first, second, row, block, position, part, head, inside, q_ptr, keys_ptr, values_ptr,
               BLOCKS, H, KV, D, BLOCK)  # fmt: skip
