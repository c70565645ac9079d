"""Attention of one new token over the live part of a slot's cache, split over programs and joined in one launch."""

# mypy: ignore-errors
# ruff: noqa: N803, N806

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from scoring.kernels.decode_gemv import cache_place


@triton.jit
def keys_values(keys_ptr, values_ptr, place, t, wanted, d, D: tl.constexpr):
    """Read the wanted rows of a tile [BT, DP] of keys and of values, which begins at a place of the cache."""
    here = wanted[:, None] & (d < D)[None, :]
    offset = place * D + t[:, None] * D + d[None, :]
    return tl.load(keys_ptr + offset, mask=here, other=0.0), tl.load(values_ptr + offset, mask=here, other=0.0)


@triton.jit
def tile_place(row_ptr, position, end, head, BLOCKS, BLOCK: tl.constexpr):
    """Place of the tile of keys that begins at a position, by its slot's row of the table; any place past the end."""
    block = tl.load(row_ptr + position // BLOCK, mask=position < end, other=0)
    return cache_place(block, position, head, BLOCKS, BLOCK)


@triton.jit
def cap(scores, limit, CAP: tl.constexpr):
    """Cap scores with CAP: limit * tanh(scores / limit)."""
    if CAP:
        scores = limit * (2.0 * tl.sigmoid(2.0 * scores / limit) - 1.0)
    return scores


@triton.jit
def _partners(d, HALF: tl.constexpr, INTERLEAVED: tl.constexpr):
    """Return (partner, pair, sign) for x[d] cos + sign x[partner] sin, by element d of a head; past HALF sin is 0."""
    if INTERLEAVED:
        return d ^ 1, d // 2, tl.where(d % 2 == 0, -1.0, 1.0)
    other = tl.where(d < HALF, d + HALF, tl.where(d < 2 * HALF, d - HALF, d))
    return other, tl.where(d < HALF, d, tl.where(d < 2 * HALF, d - HALF, HALF)), tl.where(d < HALF, -1.0, 1.0)


@triton.jit
def constants_of_heads(gain_ptr, cos_ptr, sin_ptr, at, d, D: tl.constexpr, HALF: tl.constexpr,
                       INTERLEAVED: tl.constexpr, ROTARY: tl.constexpr):  # fmt: skip
    """Return partner, gain, partner's gain, cosine and signed sine by element of a head at a position, each [DP]."""
    other, pair, sign = _partners(d, HALF, INTERLEAVED)
    gain = tl.load(gain_ptr + d, mask=d < D, other=0.0)
    gain_other = tl.load(gain_ptr + other, mask=d < D, other=0.0)
    cos = 1.0
    sin = 0.0
    if ROTARY:
        place = at.to(tl.int64) * (D // 2) + pair
        cos = tl.load(cos_ptr + place, mask=d < D, other=1.0)
        sin = sign * tl.load(sin_ptr + place, mask=d < D, other=0.0)
    return other, gain, gain_other, cos, sin


@triton.jit
def turned_heads(x_ptr, bias_ptr, base, shown, d, other, gain, gain_other, cos, sin, D: tl.constexpr,
                 ROTARY: tl.constexpr, BIAS: tl.constexpr):  # fmt: skip
    """Return heads [R, DP] of a product's row, and the same with their gains [R or 1, DP] and rotated; float32.

    base [R]: offset of a head in the row x, and in bias, which is added first; `shown` [R] masks the heads that exist.
    """
    here = shown[:, None] & (d < D)[None, :]
    a = tl.load(x_ptr + base[:, None] + d[None, :], mask=here, other=0.0).to(tl.float32)
    if BIAS:
        a += tl.load(bias_ptr + base[:, None] + d[None, :], mask=here, other=0.0).to(tl.float32)
    turned = a * gain
    if ROTARY:
        b = tl.load(x_ptr + base[:, None] + other[None, :], mask=here, other=0.0).to(tl.float32)
        if BIAS:
            b += tl.load(bias_ptr + base[:, None] + other[None, :], mask=here, other=0.0).to(tl.float32)
        turned = turned * cos[None, :] + b * (gain_other * sin[None, :])
    return a, turned


@triton.jit
def normed_heads(x_ptr, bias_ptr, base, shown, d, other, gain, gain_other, cos, sin, eps, D: tl.constexpr,
                 ROTARY: tl.constexpr, BIAS: tl.constexpr):  # fmt: skip
    """Return what `turned_heads` does with gains [DP], each head RMS-normed."""
    a, turned = turned_heads(x_ptr, bias_ptr, base, shown, d, other, gain[None, :], gain_other[None, :], cos, sin, D,
                             ROTARY, BIAS)  # fmt: skip
    return turned * tl.rsqrt(tl.sum(a * a, 1) / D + eps)[:, None]


@triton.jit
def least_span(length, BT: tl.constexpr, LEAST: tl.constexpr, WINDOW: tl.constexpr):
    """Return the keys that a span of a step has at least: more where more are seen, since spans are joined in turn."""
    if WINDOW > 0:
        length = tl.minimum(length, WINDOW)
    return tl.maximum(tl.minimum(1 + length // (12 * BT), 4) * BT, LEAST)


@triton.jit
def span_of(position, end, split, least, BT: tl.constexpr, SPLITS: tl.constexpr, WINDOW: tl.constexpr):
    """Return a split's keys [low, high) of those that queries from a position to `end` see, and how many spans live."""
    begin = 0
    if WINDOW > 0:
        begin = tl.maximum(position - WINDOW + 1, 0) // BT * BT
    span = tl.maximum(tl.cdiv(tl.cdiv(end - begin, SPLITS), BT) * BT, least)
    low = begin + split * span
    return low, tl.minimum(low + span, end), tl.cdiv(end - begin, span)


@triton.jit
def _constants(q_gain_ptr, k_gain_ptr, cos_ptr, sin_ptr, at, d, D: tl.constexpr, HALF: tl.constexpr,
               INTERLEAVED: tl.constexpr, ROTARY: tl.constexpr, NORMED: tl.constexpr):  # fmt: skip
    """Return what norms and rotates heads at a position: partner, gains of queries and of keys, cosine and sine."""
    if NORMED:
        other, q_gain, q_gain_other, cos, sin = constants_of_heads(q_gain_ptr, cos_ptr, sin_ptr, at, d, D, HALF,
                                                                   INTERLEAVED, ROTARY)  # fmt: skip
        k_gain = tl.load(k_gain_ptr + d, mask=d < D, other=0.0)
        k_gain_other = tl.load(k_gain_ptr + other, mask=d < D, other=0.0)
        found = other, q_gain, q_gain_other, k_gain, k_gain_other, cos, sin
    else:
        found = d, d, d, d, d, d, d
    return found


@triton.jit
def _normed_newest(product, bias_ptr, keys_ptr, values_ptr, place, last, head, g, d, constants, eps, H: tl.constexpr,
                   KV: tl.constexpr, D: tl.constexpr, ROTARY: tl.constexpr, BIAS: tl.constexpr):  # fmt: skip
    """Return a key head's queries [GP, DP], and the new key and value [1, DP], of a fused product [(H + 2 KV) D].

    The program of the last span, which ends with the new token, also writes key and value to their place.
    """
    other, q_gain, q_gain_other, k_gain, k_gain_other, cos, sin = constants
    G: tl.constexpr = H // KV
    GP: tl.constexpr = g.shape[0]
    GH: tl.constexpr = 1 if G == 1 else 2 if G == 2 else 4 if G <= 4 else 8 if G <= 8 else GP
    dtype = product.dtype.element_ty
    kept = keys_ptr.dtype.element_ty  # FP8 in a narrow cache
    h = tl.arange(0, GH)
    q = normed_heads(product, bias_ptr, (head * G + h) * D, h < G, d, other, q_gain, q_gain_other, cos, sin, eps, D,
                     ROTARY, BIAS).to(dtype)  # fmt: skip
    # Rows past the heads that there are repeat them: nobody reads what becomes of those.
    q = tl.broadcast_to(q[None, :, :], [GP // GH, GH, d.shape[0]]).reshape(GP, d.shape[0])
    one = tl.arange(0, 1)
    key = normed_heads(product, bias_ptr, (H + head + one) * D, one == 0, d, other, k_gain, k_gain_other, cos, sin,
                       eps, D, ROTARY, BIAS).to(dtype).to(kept)  # fmt: skip
    at = (H + KV + head + one[:, None]) * D + d[None, :]
    value = tl.load(product + at, mask=(d < D)[None, :], other=0.0)
    if BIAS:
        value += tl.load(bias_ptr + at, mask=(d < D)[None, :], other=0.0)
    value = value.to(kept)
    to_cache = place * D + one[:, None] + d[None, :]
    tl.store(keys_ptr + to_cache, key, mask=(d < D)[None, :] & last)
    tl.store(values_ptr + to_cache, value, mask=(d < D)[None, :] & last)
    tl.debug_barrier()  # spans of several tiles read them back
    return q, key, value


@triton.jit
def _newest(q_ptr, bias_ptr, keys_ptr, values_ptr, row, head, queries, shown, place, newest, last, t, wanted, g, d,
            constants, eps, H: tl.constexpr, KV: tl.constexpr, D: tl.constexpr, ROTARY: tl.constexpr,
            BIAS: tl.constexpr, NORMED: tl.constexpr):  # fmt: skip
    """Return a key head's queries, and the new key and value: computed with NORMED, else the wanted row of a tile."""
    if NORMED:
        q, key, value = _normed_newest(q_ptr + row * (H + 2 * KV) * D, bias_ptr, keys_ptr, values_ptr, newest, last,
                                       head, g, d, constants, eps, H, KV, D, ROTARY, BIAS)  # fmt: skip
    else:
        q = tl.load(q_ptr + queries, mask=shown, other=0.0)
        key, value = keys_values(keys_ptr, values_ptr, place, t, wanted, d, D)
    return q, key, value


@triton.jit
def attend(q_ptr, keys_ptr, values_ptr, out_ptr, part_ptr, stats_ptr, arrived_ptr, slopes_ptr, slots_ptr,
           lengths_ptr, bias_ptr, q_gain_ptr, k_gain_ptr, cos_ptr, sin_ptr, table_ptr, sinks_ptr, WIDTH, BLOCKS,
           scale, limit, eps, BLOCK: tl.constexpr, H: tl.constexpr, KV: tl.constexpr, D: tl.constexpr,
           DP: tl.constexpr, GP: tl.constexpr, BT: tl.constexpr, LEAST: tl.constexpr, SPLITS: tl.constexpr,
           WINDOW: tl.constexpr, ALIBI: tl.constexpr, CAP: tl.constexpr, SINKS: tl.constexpr, NORMED: tl.constexpr,
           BIAS: tl.constexpr, HALF: tl.constexpr, INTERLEAVED: tl.constexpr, ROTARY: tl.constexpr,
           PRECISION: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    """Compute out [B, H, D] of q [B, H, D] over keys and values [KV, BLOCKS, BLOCK, D]. Grid (B * KV, SPLITS).

    With NORMED, q is the raw fused product [B, (H + 2 KV) D], so that no kernel is needed between.
    A program reads a span of one key head, at least LEAST keys, for its whole group of queries, by tiles of BT keys,
    each in one block (BT divides BLOCK): the slot's row of table [slots, WIDTH] tells which. The lengths come from
    device memory: a slot's live tokens are lengths + 1, the new one included. Lengths and tables change only between
    steps, and so does the cache except the new token's row: all are read before waiting for the kernel that writes it.
    Empty spans return at once; the last of the others to finish joins the parts.
    """
    work = tl.program_id(0)
    split = tl.program_id(1)
    row = (work // KV).to(tl.int64)
    head = work % KV
    G: tl.constexpr = H // KV
    slot = tl.load(slots_ptr + row).to(tl.int64)
    own = tl.load(lengths_ptr + slot)
    low, high, live = span_of(own, own + 1, split, least_span(own + 1, BT, LEAST, WINDOW), BT, SPLITS, WINDOW)
    g = tl.arange(0, GP)
    d = tl.arange(0, DP)
    at = low + tl.arange(0, BT)
    row_ptr = table_ptr + slot * WIDTH
    place = tile_place(row_ptr, low, high, head, BLOCKS, BLOCK)
    following = tile_place(row_ptr, low + BT, high, head, BLOCKS, BLOCK)
    newest = tile_place(row_ptr, own, own + 1, head, BLOCKS, BLOCK)
    k, v = keys_values(keys_ptr, values_ptr, place, at - low, (at < high) & (at < own), d, D)
    constants = _constants(q_gain_ptr, k_gain_ptr, cos_ptr, sin_ptr, own, d, D, HALF, INTERLEAVED, ROTARY, NORMED)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    if split < live:
        queries = (row * H + head * G + g[:, None]) * D + d[None, :]
        shown = (g < G)[:, None] & (d < D)[None, :]
        q, new_k, new_v = _newest(q_ptr, bias_ptr, keys_ptr, values_ptr, row, head, queries, shown, place, newest,
                                  split == live - 1, at - low, at == own, g, d, constants, eps, H, KV, D, ROTARY,
                                  BIAS, NORMED)  # fmt: skip
        k = tl.where((at == own)[:, None], new_k, k)
        v = tl.where((at == own)[:, None], new_v, v)
        acc, mass, top = attend_span(q, k, v, keys_ptr, values_ptr, row_ptr, following, slopes_ptr + head * G + g,
                                     sinks_ptr + head * G + g, g < G, own + tl.zeros([1], tl.int32), split, head, low,
                                     high, BLOCKS, scale, limit, d, BLOCK, D, DP, GP, BT, WINDOW, ALIBI, CAP, SINKS,
                                     PRECISION)  # fmt: skip
        finish(out_ptr, part_ptr, stats_ptr, arrived_ptr, acc, mass, top, work, split, live, queries, shown, g, d, GP,
               DP, SPLITS)  # fmt: skip


@triton.jit
def attend_span(q, k, v, keys_ptr, values_ptr, row_ptr, following, slopes_ptr, sinks_ptr, heads, own, split, head, low,
                high, BLOCKS, scale, limit, d, BLOCK: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
                GP: tl.constexpr, BT: tl.constexpr, WINDOW: tl.constexpr, ALIBI: tl.constexpr, CAP: tl.constexpr,
                SINKS: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Return acc, mass and top of queries [GP, DP] over the keys [low, high), whose first tile k and v hold.

    `own`, [GP] or [1]: the queries' positions. slopes and sinks: pointers [GP], of which `heads` masks the real ones.
    """
    t = tl.arange(0, BT)
    if ALIBI:
        slopes = tl.load(slopes_ptr, mask=heads, other=0.0)
    top = tl.full([GP], -1e30, tl.float32)
    mass = tl.zeros([GP], tl.float32)
    if SINKS:  # a key without a value, in the first span
        sunk = heads & (split == 0)
        top = tl.load(sinks_ptr, mask=sunk, other=-1e30).to(tl.float32)
        mass = tl.where(sunk, 1.0, 0.0)
    acc = tl.zeros([GP, DP], tl.float32)
    for start in range(low, high, BT):
        at = start + t
        next_k, next_v = keys_values(keys_ptr, values_ptr, following, t, at + BT < high, d, D)
        following = tile_place(row_ptr, start + 2 * BT, high, head, BLOCKS, BLOCK)
        scores = cap(tl.dot(q, tl.trans(k.to(q.dtype)), input_precision=PRECISION) * scale, limit, CAP)
        distance = own[:, None] - at[None, :]
        if ALIBI:
            scores -= slopes[:, None] * distance.to(tl.float32)
        seen = (distance >= 0) & (at < high)[None, :]
        if WINDOW > 0:
            seen = seen & (distance < WINDOW)
        scores = tl.where(seen, scores, -1e30)  # a query that sees none of a span has no weight in the join
        acc, mass, top = weigh(acc, mass, top, scores, v.to(q.dtype), PRECISION)
        k = next_k
        v = next_v
    return acc, mass, top


@triton.jit
def weigh(acc, mass, top, scores, values, PRECISION: tl.constexpr):
    """Return acc, mass and top [R] of a running softmax after a tile of scores [R, BT] and its values [BT, DP]."""
    higher = tl.maximum(top, tl.max(scores, 1))
    weights = tl.exp(scores - higher[:, None])
    shrink = tl.exp(top - higher)
    mass = mass * shrink + tl.sum(weights, 1)
    acc = acc * shrink[:, None] + tl.dot(weights.to(values.dtype), values, input_precision=PRECISION)
    return acc, mass, higher


@triton.jit
def finish(out_ptr, part_ptr, stats_ptr, arrived_ptr, acc, mass, top, work, split, live, queries, shown, r, d,
           GP: tl.constexpr, DP: tl.constexpr, SPLITS: tl.constexpr):  # fmt: skip
    """Store out of a single span, or a part of several, which the last program to arrive joins.

    part [B, KV, SPLITS, GP, DP], stats [.., 2, GP]; the counter arrived [B, KV] is 0 again afterwards.
    """
    if live == 1:
        tl.store(out_ptr + queries, acc / mass[:, None], mask=shown)
    else:
        part = (work * SPLITS + split).to(tl.int64)
        tl.store(part_ptr + part * GP * DP + r[:, None] * DP + d[None, :], acc)
        tl.store(stats_ptr + part * 2 * GP + r, top)
        tl.store(stats_ptr + part * 2 * GP + GP + r, mass)
        tl.debug_barrier()
        if tl.atomic_add(arrived_ptr + work, 1, sem="acq_rel") == live - 1:
            join(out_ptr, part_ptr, stats_ptr, work, live, queries, shown, r, d, GP, DP, SPLITS)
            tl.store(arrived_ptr + work, 0)


@triton.jit
def join(out_ptr, part_ptr, stats_ptr, work, live, queries, shown, g, d, GP: tl.constexpr, DP: tl.constexpr,
         SPLITS: tl.constexpr):  # fmt: skip
    """Merge the parts of the live spans into out."""
    top = tl.full([GP], -1e30, tl.float32)
    mass = tl.zeros([GP], tl.float32)
    acc = tl.zeros([GP, DP], tl.float32)
    for split in range(live):
        place = (work * SPLITS + split).to(tl.int64)
        part = tl.load(part_ptr + place * GP * DP + g[:, None] * DP + d[None, :], cache_modifier=".cg")
        part_top = tl.load(stats_ptr + place * 2 * GP + g, cache_modifier=".cg")
        part_mass = tl.load(stats_ptr + place * 2 * GP + GP + g, cache_modifier=".cg")
        higher = tl.maximum(top, part_top)
        shrink = tl.exp(top - higher)
        grow = tl.exp(part_top - higher)
        mass = mass * shrink + part_mass * grow
        acc = acc * shrink[:, None] + part * grow[:, None]
        top = higher
    tl.store(out_ptr + queries, acc / mass[:, None], mask=shown)
