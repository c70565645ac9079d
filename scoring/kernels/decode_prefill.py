"""Kernels of a prefill chunk beyond those of a decode step: attention, updates of the state, and new slots."""

# mypy: ignore-errors
# ruff: noqa: N803, SIM108

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from scoring.kernels.decode_attention import cap, constants_of_heads, normed_heads, turned_heads
from scoring.kernels.decode_gemv import cache_place, split_heads

_LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _rows(source, place, t, d, D: tl.constexpr, DP: tl.constexpr, DESCRIBED: tl.constexpr):
    """Read BN rows [BN, DP] from a place of keys or values on, given as a descriptor or a pointer."""
    if DESCRIBED:
        rows = source.load([place.to(tl.int32), 0])
    elif D == DP:
        rows = tl.load(source + (place + t)[:, None] * D + d[None, :])
    else:
        rows = tl.load(source + (place + t)[:, None] * D + d[None, :], mask=(d < D)[None, :], other=0.0)
    return rows


@triton.jit
def _attend_span(acc, mass, top, q, keys, values, row_ptr, head, low, high, end, own, slope, BLOCKS, scale, limit, t, d,
                 BLOCK: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BN: tl.constexpr, WINDOW: tl.constexpr,
                 ALIBI: tl.constexpr, CAP: tl.constexpr, MASKED: tl.constexpr, DESCRIBED: tl.constexpr,
                 PRECISION: tl.constexpr):  # fmt: skip
    """Take the keys of [low, high) into a running softmax in base 2; without MASKED every query sees all of them."""
    for start in tl.range(low, high, BN):
        block = tl.load(row_ptr + start // BLOCK)
        place = cache_place(block, start, head, BLOCKS, BLOCK)
        k = _rows(keys, place, t, d, D, DP, DESCRIBED).to(q.dtype)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        scores = cap(scores * scale, limit, CAP) * _LOG2E if CAP else scores * (scale * _LOG2E)
        at = start + t
        distance = own[:, None] - at[None, :]
        if ALIBI:
            scores -= (slope * _LOG2E) * distance.to(tl.float32)
        if MASKED:
            seen = distance >= 0
            if WINDOW > 0:
                seen = seen & (distance < WINDOW)
            scores = tl.where(seen, scores, -1e30)
        higher = tl.maximum(top, tl.max(scores, 1))
        weights = tl.exp2(scores - higher[:, None])
        shrink = tl.exp2(top - higher)
        mass = mass * shrink + tl.sum(weights, 1)
        acc = acc * shrink[:, None]
        v = _rows(values, place, t, d, D, DP, DESCRIBED).to(q.dtype)
        if MASKED:
            v = tl.where((at < end)[:, None], v, 0.0)  # a block's rest may hold anything
        acc = tl.dot(weights.to(v.dtype), v, acc, input_precision=PRECISION)
        top = higher
    return acc, mass, top


@triton.jit
def _join_spans(acc, mass, top, part_ptr, stats_ptr, spans, PARTED, queries, token, count, shown, H: tl.constexpr,
                D: tl.constexpr):  # fmt: skip
    """Take the results that there are of earlier spans of keys into a tile's running softmax in base 2."""
    for span in range(spans):
        begin = span * PARTED.to(tl.int64) * H
        part = tl.load(part_ptr + begin * D + queries, mask=shown, other=0.0).to(tl.float32)
        other = tl.load(stats_ptr + begin + token, mask=token < count, other=0.0) * _LOG2E
        higher = tl.maximum(top, other)
        shrink = tl.exp2(top - higher)
        grow = tl.exp2(other - higher)
        mass = mass * shrink + grow
        acc = acc * shrink[:, None] + part * grow[:, None]
        top = higher
    return acc, mass, top


@triton.jit
def _attend_keys(acc, mass, top, q, keys, values, row_ptr, head, low, position, end, own, slope, BLOCKS, scale, limit,
                 t, d, BLOCK: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BN: tl.constexpr, WINDOW: tl.constexpr,
                 ALIBI: tl.constexpr, CAP: tl.constexpr, DESCRIBED: tl.constexpr,
                 PRECISION: tl.constexpr):  # fmt: skip
    """Take the keys of [low, end) into a running softmax, masked only where some of the tile's queries miss a key."""
    inner = low
    if WINDOW > 0:
        low = tl.maximum(low, tl.maximum(position - WINDOW + 1, 0) // BN * BN)
        inner = tl.maximum(low, tl.cdiv(tl.maximum(end - WINDOW, 0), BN) * BN)  # all queries see from here on
        acc, mass, top = _attend_span(acc, mass, top, q, keys, values, row_ptr, head, low, tl.minimum(inner, end), end,
                                      own, slope, BLOCKS, scale, limit, t, d, BLOCK, D, DP, BN, WINDOW, ALIBI, CAP,
                                      True, DESCRIBED, PRECISION)  # fmt: skip
    whole = tl.maximum(inner, (position + 1) // BN * BN)  # and up to here
    acc, mass, top = _attend_span(acc, mass, top, q, keys, values, row_ptr, head, inner, whole, end, own, slope,
                                  BLOCKS, scale, limit, t, d, BLOCK, D, DP, BN, WINDOW, ALIBI, CAP, False, DESCRIBED,
                                  PRECISION)  # fmt: skip
    acc, mass, top = _attend_span(acc, mass, top, q, keys, values, row_ptr, head, whole, end, end, own, slope, BLOCKS,
                                  scale, limit, t, d, BLOCK, D, DP, BN, WINDOW, ALIBI, CAP, True, DESCRIBED,
                                  PRECISION)  # fmt: skip
    return acc, mass, top


@triton.jit
def attend_prompt(q_ptr, keys, values, out_ptr, slopes_ptr, tiles_ptr, table_ptr, sinks_ptr, part_ptr, stats_ptr,
                  TILES, WIDTH, BLOCKS, PARTED, scale, limit, BLOCK: tl.constexpr, H: tl.constexpr, KV:
                  tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, SPANS:
                  tl.constexpr, WINDOW: tl.constexpr, ALIBI: tl.constexpr, CAP: tl.constexpr, SINKS: tl.constexpr,
                  DESCRIBED: tl.constexpr, PRECISION: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    """Compute out [T, H, D] of q [T, H, D] over keys and values [KV, BLOCKS, BLOCK, D]. Grid (tiles, H).

    A tile is up to BM consecutive tokens of one slot; a program takes one head of it, over the slot's keys up to the
    last of its tokens, earlier chunks included. tiles [6, TILES]: the first token's row, the number of tokens, the
    slot, the first token's position, the first key, the number of spans. Of the keys before that one there are results
    already, by spans, with SPANS: part [spans, PARTED, H, D] by span and row, and stats [spans, H, PARTED], the
    logarithms of the sums of their weights. BN divides BLOCK. DESCRIBED: keys and values are descriptors of rows.
    """
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    tile = tl.num_programs(0) - 1 - tl.program_id(0)  # those with the most keys first
    head = tl.program_id(1)
    first = tl.load(tiles_ptr + tile)
    count = tl.load(tiles_ptr + TILES + tile)
    slot = tl.load(tiles_ptr + 2 * TILES + tile).to(tl.int64)
    position = tl.load(tiles_ptr + 3 * TILES + tile)
    low = 0
    if SPANS:
        low = tl.load(tiles_ptr + 4 * TILES + tile)
    if count > 0:
        token = tl.arange(0, BM)
        d = tl.arange(0, DP)
        t = tl.arange(0, BN)
        shown = (token < count)[:, None] & (d < D)[None, :]
        queries = (((first + token).to(tl.int64) * H + head) * D)[:, None] + d[None, :]
        q = tl.load(q_ptr + queries, mask=shown, other=0.0)
        slope = 0.0
        if ALIBI:
            slope = tl.load(slopes_ptr + head)
        top = tl.full([BM], -1e30, tl.float32)
        mass = tl.zeros([BM], tl.float32)
        if SINKS:  # a key without a value
            top = tl.zeros([BM], tl.float32) + tl.load(sinks_ptr + head).to(tl.float32) * _LOG2E
            mass += 1.0
        acc = tl.zeros([BM, DP], tl.float32)
        if SPANS:
            acc, mass, top = _join_spans(acc, mass, top, part_ptr, stats_ptr + head * PARTED + first,
                                         tl.load(tiles_ptr + 5 * TILES + tile), PARTED, queries, token, count, shown,
                                         H, D)  # fmt: skip
        acc, mass, top = _attend_keys(acc, mass, top, q, keys, values, table_ptr + slot * WIDTH, head // (H // KV), low,
                                      position, position + count, position + token, slope, BLOCKS, scale, limit, t, d,
                                      BLOCK, D, DP, BN, WINDOW, ALIBI, CAP, DESCRIBED, PRECISION)  # fmt: skip
        tl.store(out_ptr + queries, acc / mass[:, None], mask=shown)


@triton.jit(do_not_specialize=["PART"])
def gather(keys_ptr, values_ptr, table_ptr, slots_ptr, to_keys_ptr, to_values_ptr, PART, WIDTH, FIRST, BLOCKS, COUNT,
           SIZE: tl.constexpr, BE: tl.constexpr):  # fmt: skip
    """Copy COUNT blocks of SIZE numbers from keys and values [KV, BLOCKS, SIZE] to [KV, COUNT, SIZE].

    Row slots[PART] of the table names them from FIRST on. Grid (COUNT, KV, SIZE / BE).
    """
    row_ptr = table_ptr + tl.load(slots_ptr + PART).to(tl.int64) * WIDTH
    number = tl.program_id(0)
    head = tl.program_id(1).to(tl.int64)
    e = tl.program_id(2) * BE + tl.arange(0, BE)
    block = tl.load(row_ptr + FIRST + number)
    source = (head * BLOCKS + block) * SIZE + e
    target = (head * COUNT + number) * SIZE + e
    tl.store(to_keys_ptr + target, tl.load(keys_ptr + source, mask=e < SIZE), mask=e < SIZE)
    tl.store(to_values_ptr + target, tl.load(values_ptr + source, mask=e < SIZE), mask=e < SIZE)


@triton.jit
def _sum_of_squares(x_ptr, bias_ptr, begin, N, WP: tl.constexpr, BIAS: tl.constexpr):
    """Sum of squares of N numbers of a product's row, which begin there; WP is N or more."""
    w = tl.arange(0, WP)
    x = tl.load(x_ptr + begin + w, mask=w < N, other=0.0).to(tl.float32)
    if BIAS:
        x += tl.load(bias_ptr + begin + w, mask=w < N, other=0.0).to(tl.float32)
    return tl.sum(x * x, 0)


@triton.jit
def squares(qkv_ptr, bias_ptr, out_ptr, H: tl.constexpr, KV: tl.constexpr, D: tl.constexpr, BIAS: tl.constexpr,
            WP: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    """Compute out [T, 2], the sums of squares of a row's queries and of its keys in the fused product. Grid (T, 2)."""
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    width = tl.where(part == 0, H, KV) * D
    total = _sum_of_squares(qkv_ptr + row * (H + 2 * KV) * D, bias_ptr, part * H * D, width, WP, BIAS)
    tl.store(out_ptr + row * 2 + part, total)


@triton.jit
def _joint_heads(x_ptr, bias_ptr, gain_ptr, sum_ptr, first, head, heads, N, d, other, cos, sin, eps, D: tl.constexpr,
                 WP: tl.constexpr, RANKS: tl.constexpr, ROTARY: tl.constexpr, BIAS: tl.constexpr):  # fmt: skip
    """Return heads of a product's row, rotated and RMS-normed over N numbers: all queries, or all keys.

    first: of the `heads` [R] in the product; head: among queries or keys, whose gains gain [N] has. With RANKS they are
    parts of so many, and *sum has the sum of all ranks' squares.
    """
    if RANKS > 0:
        mean = tl.load(sum_ptr) / (N * RANKS)
    else:
        mean = _sum_of_squares(x_ptr, bias_ptr, (first - head) * D, N, WP, BIAS) / N
    own = gain_ptr + (head + heads)[:, None] * D
    gain = tl.load(own + d[None, :], mask=(d < D)[None, :], other=0.0)
    gain_other = tl.load(own + other[None, :], mask=(d < D)[None, :], other=0.0)
    _, turned = turned_heads(x_ptr, bias_ptr, (first + heads) * D, heads >= 0, d, other, gain, gain_other, cos, sin, D,
                             ROTARY, BIAS)  # fmt: skip
    return turned * tl.rsqrt(mean + eps)


@triton.jit
def _normed(x_ptr, bias_ptr, gain_ptr, sum_ptr, cos_ptr, sin_ptr, position, first, head, heads, N, d, eps,
            D: tl.constexpr, HALF: tl.constexpr, INTERLEAVED: tl.constexpr, ROTARY: tl.constexpr, BIAS: tl.constexpr,
            WP: tl.constexpr, RANKS: tl.constexpr):  # fmt: skip
    """Return heads of a product's row, normed and rotated: each by itself, or with WP over N numbers."""
    other, gain, gain_other, cos, sin = constants_of_heads(gain_ptr, cos_ptr, sin_ptr, position, d, D, HALF,
                                                           INTERLEAVED, ROTARY)  # fmt: skip
    if WP > 0:
        x = _joint_heads(x_ptr, bias_ptr, gain_ptr, sum_ptr, first, head, heads, N, d, other, cos, sin, eps, D, WP,
                         RANKS, ROTARY, BIAS)  # fmt: skip
    else:
        x = normed_heads(x_ptr, bias_ptr, (first + heads) * D, heads >= 0, d, other, gain, gain_other, cos, sin, eps, D,
                         ROTARY, BIAS)  # fmt: skip
    return x


@triton.jit
def scatter_normed(qkv_ptr, bias_ptr, q_ptr, keys_ptr, values_ptr, q_gain_ptr, k_gain_ptr, sums_ptr, cos_ptr, sin_ptr,
                   slots_ptr, positions_ptr, table_ptr, WIDTH, BLOCKS, eps, BLOCK: tl.constexpr,
                   H: tl.constexpr, KV: tl.constexpr, D: tl.constexpr,
                   DP: tl.constexpr, BH: tl.constexpr, HALF: tl.constexpr, INTERLEAVED: tl.constexpr,
                   ROTARY: tl.constexpr, OWN: tl.constexpr, BIAS: tl.constexpr, WP: tl.constexpr,
                   RANKS: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    """Norm and rotate queries and keys of the fused product [T, (H + 2 KV) D]; write q and the cache.

    A program takes BH heads of a token, all queries, all keys or all values: BH divides H and KV. Grid (T, heads / BH).
    A row's position is its slot's length, or with OWN its own entry of positions. Each head is normed by itself, or
    with WP, of which there are at least H D, queries together and keys together; with RANKS, over whose slices sums
    [T, 2] have their squares.
    """
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    row = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * BH
    part, head = split_heads(first, H, KV)
    d = tl.arange(0, DP)
    heads = tl.arange(0, BH)
    slot = tl.load(slots_ptr + row).to(tl.int64)
    if OWN:
        position = tl.load(positions_ptr + row)
    else:
        position = tl.load(positions_ptr + slot)
    product = qkv_ptr + row * (H + 2 * KV) * D
    base = (first + heads) * D
    here = (d < D)[None, :]
    block = tl.load(table_ptr + slot * WIDTH + position // BLOCK)
    to_cache = cache_place(block, position, head + heads, BLOCKS, BLOCK)[:, None] * D + d[None, :]
    if part == 2:
        value = tl.load(product + base[:, None] + d[None, :], mask=here, other=0.0)
        if BIAS:
            value += tl.load(bias_ptr + base[:, None] + d[None, :], mask=here, other=0.0)
        tl.store(values_ptr + to_cache, value, mask=here)
    else:
        gain_ptr = q_gain_ptr
        width = H * D
        if part == 1:
            gain_ptr = k_gain_ptr
            width = KV * D
        x = _normed(product, bias_ptr, gain_ptr, sums_ptr + row * 2 + part, cos_ptr, sin_ptr, position, first, head,
                    heads, width, d, eps, D, HALF, INTERLEAVED, ROTARY, BIAS, WP, RANKS)  # fmt: skip
        if part == 1:
            tl.store(keys_ptr + to_cache, x, mask=here)
        else:
            tl.store(q_ptr + (row * H + head + heads)[:, None] * D + d[None, :], x, mask=here)


@triton.jit
def mark(tokens_ptr, slots_ptr, part_slots_ptr, part_ends_ptr, seen_ptr, lengths_ptr, T, V, PARTS, BT: tl.constexpr,
         BP: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    """Mark the tokens of a chunk as seen, and set its slots' lengths to those after it. Grid (T / BT,)."""
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    row = tl.program_id(0) * BT + tl.arange(0, BT)
    inside = row < T
    slot = tl.load(slots_ptr + row, mask=inside, other=0).to(tl.int64)
    token = tl.load(tokens_ptr + row, mask=inside, other=0)
    tl.store(seen_ptr + slot * V + token, 1, mask=inside)
    if tl.program_id(0) == 0:
        part = tl.arange(0, BP)
        slots = tl.load(part_slots_ptr + part, mask=part < PARTS, other=0)
        ends = tl.load(part_ends_ptr + part, mask=part < PARTS, other=0)
        tl.store(lengths_ptr + slots, ends, mask=part < PARTS)


@triton.jit
def admit(records_ptr, seen_ptr, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, penalty_ptr, seed_ptr,
          forbidden_ptr, until_ptr, constrained_ptr, long_ptr, V, WIDTH: tl.constexpr, HELD: tl.constexpr,
          BV: tl.constexpr):  # fmt: skip
    """Empty slots and set their sampling parameters from records [n, WIDTH] int32. Grid (n, V / BV).

    A record: slot, top-k, length until which tokens are forbidden, temperature, top-p, penalty and min-p as float32
    bits, the seed's low and high word, whether the slot is constrained, and long, the forbidden tokens.
    """
    record = records_ptr + tl.program_id(0) * WIDTH
    slot = tl.load(record).to(tl.int64)
    v = tl.program_id(1) * BV + tl.arange(0, BV)
    tl.store(seen_ptr + slot * V + v, tl.zeros([BV], tl.uint8), mask=v < V)
    if tl.program_id(1) == 0:
        tl.store(top_k_ptr + slot, tl.load(record + 1))
        tl.store(until_ptr + slot, tl.load(record + 2))
        tl.store(temperature_ptr + slot, tl.load(record + 3).to(tl.float32, bitcast=True))
        tl.store(top_p_ptr + slot, tl.load(record + 4).to(tl.float32, bitcast=True))
        tl.store(penalty_ptr + slot, tl.load(record + 5).to(tl.float32, bitcast=True))
        tl.store(min_p_ptr + slot, tl.load(record + 6).to(tl.float32, bitcast=True))
        low = tl.load(record + 7).to(tl.int64) & 0xFFFFFFFF
        tl.store(seed_ptr + slot, low | (tl.load(record + 8).to(tl.int64) << 32))
        tl.store(constrained_ptr + slot, tl.load(record + 9))
        tl.store(long_ptr + slot, tl.load(record + 10))
        for index in tl.static_range(HELD):
            tl.store(forbidden_ptr + slot * HELD + index, tl.load(record + 11 + index))


@triton.jit(do_not_specialize=["COUNT"])  # which would compile anew for 1, for multiples of 16 and for the rest
def extend(grown_ptr, table_ptr, COUNT, BN: tl.constexpr):
    """Enter blocks in the tables: grown [COUNT, 2] int32 is a place in table, and the block. Grid (COUNT / BN,)."""
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    place = tl.load(grown_ptr + 2 * n, mask=n < COUNT, other=0)
    block = tl.load(grown_ptr + 2 * n + 1, mask=n < COUNT, other=0)
    tl.store(table_ptr + place, block, mask=n < COUNT)
