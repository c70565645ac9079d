"""Product and attention whose sums have one order, whatever else is in the batch: for `--batch-invariant`.

A row's product is one chain of multiply-adds over K, in steps of the matrix unit, in whichever tile the row lies. A
query's keys are taken in spans that begin at multiples of SPAN, each in tiles of BT keys; keys that it does not see
weigh exactly nothing; spans are joined in their order. So neither rows beside it, nor how a prompt was cut, nor how
many programs share the work, changes a bit.
"""

# mypy: ignore-errors
# ruff: noqa: N803, N806

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from scoring.kernels.decode_attention import cap
from scoring.kernels.decode_gemv import cache_place


@triton.jit
def product(x_ptr, w_ptr, out_ptr, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, EVEN: tl.constexpr,
            PRECISION: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    """Compute out [M, N] = x [M, K] W^T. Grid (M / BM * N / BN,): programs that read the same weights are adjacent."""
    tiles = tl.cdiv(M, BM)
    m = (tl.program_id(0) % tiles) * BM + tl.arange(0, BM)
    n = (tl.program_id(0) // tiles) * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    x_at = x_ptr + m.to(tl.int64)[:, None] * K + k[None, :]
    w_at = w_ptr + n.to(tl.int64)[:, None] * K + k[None, :]
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    acc = tl.zeros([BM, BN], tl.float32)
    for start in range(0, K, BK):
        if EVEN:
            x = tl.load(x_at + start, mask=(m < M)[:, None], other=0.0)
            w = tl.load(w_at + start, mask=(n < N)[:, None], other=0.0)
        else:
            x = tl.load(x_at + start, mask=(m < M)[:, None] & (start + k < K)[None, :], other=0.0)
            w = tl.load(w_at + start, mask=(n < N)[:, None] & (start + k < K)[None, :], other=0.0)
        acc = tl.dot(x, tl.trans(w), acc, input_precision=PRECISION)
    out = out_ptr + m.to(tl.int64)[:, None] * N + n[None, :]
    tl.store(out, acc.to(out_ptr.dtype.element_ty), mask=(m < M)[:, None] & (n < N)[None, :])


@triton.jit
def _span(q, keys_ptr, values_ptr, row_ptr, slopes, own, head, low, high, end, BLOCKS, scale, limit,
          BLOCK: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, GP: tl.constexpr, BT: tl.constexpr,
          WINDOW: tl.constexpr, ALIBI: tl.constexpr, CAP: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Return acc, mass and top of queries [GP, DP] at positions `own` [GP] over the keys [low, high)."""
    t = tl.arange(0, BT)
    d = tl.arange(0, DP)
    top = tl.full([GP], -1e30, tl.float32)
    mass = tl.zeros([GP], tl.float32)
    acc = tl.zeros([GP, DP], tl.float32)
    for start in tl.range(low, high, BT):
        block = tl.load(row_ptr + start // BLOCK)
        at = start + t
        place = (cache_place(block, start, head, BLOCKS, BLOCK) + t) * D
        k = tl.load(keys_ptr + place[:, None] + d[None, :], mask=(d < D)[None, :], other=0.0).to(q.dtype)
        scores = cap(tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale, limit, CAP)
        distance = own[:, None] - at[None, :]
        if ALIBI:
            scores -= slopes[:, None] * distance.to(tl.float32)
        seen = distance >= 0
        if WINDOW > 0:
            seen = seen & (distance < WINDOW)
        scores = tl.where(seen, scores, -1e30)
        higher = tl.maximum(top, tl.max(scores, 1))
        weights = tl.exp(scores - higher[:, None])
        shrink = tl.exp(top - higher)
        mass = mass * shrink + tl.sum(weights, 1)
        v = tl.load(values_ptr + place[:, None] + d[None, :], mask=(at < end)[:, None] & (d < D)[None, :], other=0.0)
        v = v.to(q.dtype)
        acc = tl.dot(weights.to(v.dtype), v, acc * shrink[:, None], input_precision=PRECISION)
        top = higher
    return acc, mass, top


@triton.jit
def _begun(sinks_ptr, heads, shown, GP: tl.constexpr, DP: tl.constexpr, SINKS: tl.constexpr):
    """Return acc, mass and top before the first span: nothing, or with SINKS a key of each head that has no value."""
    acc = tl.zeros([GP, DP], tl.float32)
    mass = tl.zeros([GP], tl.float32)
    top = tl.full([GP], -1e30, tl.float32)
    if SINKS:
        top = tl.load(sinks_ptr + heads, mask=shown, other=-1e30).to(tl.float32)
        mass += 1.0
    return acc, mass, top


@triton.jit
def _joined(acc, mass, top, part, part_mass, part_top):
    """Add a span's part to the result of the spans before it, by explicit multiply-adds, which round one way."""
    higher = tl.maximum(top, part_top)
    shrink = tl.exp(top - higher)
    grow = tl.exp(part_top - higher)
    mass = tl.fma(mass, shrink, part_mass * grow)
    acc = tl.fma(acc, tl.broadcast_to(shrink[:, None], acc.shape), part * grow[:, None])
    return acc, mass, higher


@triton.jit
def _all_spans(acc, mass, top, q, keys_ptr, values_ptr, row_ptr, slopes, own, head, first, live, begin, end, BLOCKS,
               scale, limit, BLOCK: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, GP: tl.constexpr,
               BT: tl.constexpr, SPAN: tl.constexpr, WINDOW: tl.constexpr, ALIBI: tl.constexpr, CAP: tl.constexpr,
               PRECISION: tl.constexpr):  # fmt: skip
    """Return acc and mass after `live` spans from `first` on, which is taken in part if it begins before `begin`."""
    for span in range(first, first + live):
        part, part_mass, part_top = _span(
            q, keys_ptr, values_ptr, row_ptr, slopes, own, head, tl.maximum(span * SPAN, begin),
            tl.minimum((span + 1) * SPAN, end), end, BLOCKS, scale, limit, BLOCK, D, DP, GP, BT, WINDOW, ALIBI, CAP,
            PRECISION,
        )  # fmt: skip
        acc, mass, top = _joined(acc, mass, top, part, part_mass, part_top)
    return acc, mass


@triton.jit
def attend(q_ptr, keys_ptr, values_ptr, out_ptr, part_ptr, stats_ptr, arrived_ptr, slopes_ptr, tiles_ptr, table_ptr,
           sinks_ptr, TILES, WIDTH, BLOCKS, scale, limit, BLOCK: tl.constexpr, H: tl.constexpr, KV: tl.constexpr,
           D: tl.constexpr, DP: tl.constexpr, GG: tl.constexpr, GP: tl.constexpr, BT: tl.constexpr, SPAN: tl.constexpr,
           SPLITS: tl.constexpr, WINDOW: tl.constexpr, ALIBI: tl.constexpr, CAP: tl.constexpr, SINKS: tl.constexpr,
           PRECISION: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    """Compute out [T, H, D] of q [T, H, D] over keys and values [KV, BLOCKS, BLOCK, D]. Grid (tiles * KV, SPLITS).

    A tile is up to GP / GG consecutive tokens of one slot, for one key head; GG is the next power of two of its group
    of queries. tiles [4, TILES]: the first token's row, the number of tokens, the slot, the first token's position.
    With one split a program takes all spans, one after another; with several, each takes one, tiles are of a single
    token, and the last to finish joins them: parts [tiles * KV, SPLITS, GG, DP], stats [.., 2, GG]; arrived is 0 again
    afterwards. BT divides BLOCK and SPAN.
    """
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    work, split = tl.program_id(0), tl.program_id(1)
    tile, head = work // KV, work % KV
    G: tl.constexpr = H // KV
    row = tl.load(tiles_ptr + tile).to(tl.int64)
    count = tl.load(tiles_ptr + TILES + tile)
    slot = tl.load(tiles_ptr + 2 * TILES + tile).to(tl.int64)
    position = tl.load(tiles_ptr + 3 * TILES + tile)
    end = position + count
    begin = tl.maximum(position - WINDOW + 1, 0) // BT * BT if WINDOW > 0 else 0
    first = begin // SPAN
    live = tl.cdiv(end, SPAN) - first
    r, d = tl.arange(0, GP), tl.arange(0, DP)
    token, g = r // GG, r % GG
    heads = head * G + g
    queries = ((row + token[:, None]) * H + heads[:, None]) * D + d[None, :]
    shown = ((token < count) & (g < G))[:, None] & (d < D)[None, :]
    if (count > 0) & (split < live):
        q = tl.load(q_ptr + queries, mask=shown, other=0.0)
        slopes = tl.load(slopes_ptr + heads, mask=g < G, other=0.0) if ALIBI else tl.zeros([GP], tl.float32)
        row_ptr = table_ptr + slot * WIDTH
        if SPLITS == 1:
            acc, mass, top = _begun(sinks_ptr, heads, g < G, GP, DP, SINKS)
            acc, mass = _all_spans(acc, mass, top, q, keys_ptr, values_ptr, row_ptr, slopes, position + token, head,
                                   first, live, begin, end, BLOCKS, scale, limit, BLOCK, D, DP, GP, BT, SPAN, WINDOW,
                                   ALIBI, CAP, PRECISION)  # fmt: skip
            tl.store(out_ptr + queries, acc / mass[:, None], mask=shown)
        else:
            low = (first + split) * SPAN
            acc, mass, top = _span(q, keys_ptr, values_ptr, row_ptr, slopes, position + token, head,
                                   tl.maximum(low, begin), tl.minimum(low + SPAN, end), end, BLOCKS, scale, limit,
                                   BLOCK, D, DP, GP, BT, WINDOW, ALIBI, CAP, PRECISION)  # fmt: skip
            _finish(out_ptr, part_ptr, stats_ptr, arrived_ptr, sinks_ptr, heads, g < G, acc, mass, top, work, split,
                    live, queries, shown, r, d, GG, GP, DP, SPLITS, SINKS)  # fmt: skip


@triton.jit
def _finish(out_ptr, part_ptr, stats_ptr, arrived_ptr, sinks_ptr, heads, real, acc, mass, top, work, split, live,
            queries, shown, r, d, GG: tl.constexpr, GP: tl.constexpr, DP: tl.constexpr, SPLITS: tl.constexpr,
            SINKS: tl.constexpr):  # fmt: skip
    """Store a split's part; the last program to arrive joins them all, in the order of the spans."""
    kept = r < GG
    place = (work * SPLITS + split).to(tl.int64)
    tl.store(part_ptr + (place * GG + r[:, None]) * DP + d[None, :], acc, mask=kept[:, None])
    tl.store(stats_ptr + place * 2 * GG + r, top, mask=kept)
    tl.store(stats_ptr + place * 2 * GG + GG + r, mass, mask=kept)
    tl.debug_barrier()
    if tl.atomic_add(arrived_ptr + work, 1, sem="acq_rel") == live - 1:
        whole, whole_mass, whole_top = _begun(sinks_ptr, heads, real, GP, DP, SINKS)
        for other in range(live):
            at = (work * SPLITS + other).to(tl.int64)
            part = tl.load(part_ptr + (at * GG + r[:, None]) * DP + d[None, :], mask=kept[:, None], other=0.0,
                           cache_modifier=".cg")  # fmt: skip
            part_top = tl.load(stats_ptr + at * 2 * GG + r, mask=kept, other=-1e30, cache_modifier=".cg")
            part_mass = tl.load(stats_ptr + at * 2 * GG + GG + r, mask=kept, other=0.0, cache_modifier=".cg")
            whole, whole_mass, whole_top = _joined(whole, whole_mass, whole_top, part, part_mass, part_top)
        tl.store(out_ptr + queries, whole / whole_mass[:, None], mask=shown)
        tl.store(arrived_ptr + work, 0)
