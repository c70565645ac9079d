"""Attention of one new token over the live part of a slot's cache, split over programs and joined in one launch."""

# mypy: ignore-errors
# ruff: noqa: N803, N806

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def _keys_values(keys_ptr, values_ptr, base, at, wanted, d, D: tl.constexpr):
    here = wanted[:, None] & (d < D)[None, :]
    k = tl.load(keys_ptr + base + at[:, None] * D + d[None, :], mask=here, other=0.0)
    v = tl.load(values_ptr + base + at[:, None] * D + d[None, :], mask=here, other=0.0)
    return k, v


@triton.jit
def attend(q_ptr, keys_ptr, values_ptr, out_ptr, part_ptr, stats_ptr, arrived_ptr, slopes_ptr, slots_ptr,
           lengths_ptr, LENGTH, scale, H: tl.constexpr, KV: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
           GP: tl.constexpr, BT: tl.constexpr, LEAST: tl.constexpr, SPLITS: tl.constexpr, WINDOW: tl.constexpr,
           ALIBI: tl.constexpr, PRECISION: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    """out [B, H, D] of q [B, H, D] over keys and values [slots, KV, LENGTH, D]. Grid (B * KV, SPLITS).

    A program reads a span of one key head for its whole group of queries, at least LEAST keys. The lengths come from
    device memory: a slot's live tokens are lengths + 1, the new one included. They change only between steps, and so
    does all of the cache but the new token's row: both are read before waiting for the kernel that writes that row.
    Spans that hold nothing leave at once; the last of the others to arrive joins the parts (part [B, KV, SPLITS, GP,
    DP], stats [.., 2, GP]) and clears the counter.
    """
    work = tl.program_id(0)
    split = tl.program_id(1)
    row = (work // KV).to(tl.int64)
    head = work % KV
    G: tl.constexpr = H // KV
    slot = tl.load(slots_ptr + row).to(tl.int64)
    end = tl.load(lengths_ptr + slot) + 1
    begin = 0
    if WINDOW > 0:
        begin = tl.maximum(end - WINDOW, 0)
    span = tl.maximum(tl.cdiv(tl.cdiv(end - begin, SPLITS), BT) * BT, LEAST)
    live = tl.cdiv(end - begin, span)
    low = begin + split * span
    high = tl.minimum(low + span, end)
    g = tl.arange(0, GP)
    d = tl.arange(0, DP)
    t = tl.arange(0, BT)
    base = (slot * KV + head) * LENGTH * D
    at = low + t
    k, v = _keys_values(keys_ptr, values_ptr, base, at, (at < high) & (at < end - 1), d, D)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    if split < live:
        queries = (row * H + head * G + g[:, None]) * D + d[None, :]
        shown = (g < G)[:, None] & (d < D)[None, :]
        q = tl.load(q_ptr + queries, mask=shown, other=0.0)
        new_k, new_v = _keys_values(keys_ptr, values_ptr, base, at, at == end - 1, d, D)
        k = tl.where((at == end - 1)[:, None], new_k, k)
        v = tl.where((at == end - 1)[:, None], new_v, v)
        if ALIBI:
            slopes = tl.load(slopes_ptr + head * G + g, mask=g < G, other=0.0)
        top = tl.full([GP], -1e30, tl.float32)
        mass = tl.zeros([GP], tl.float32)
        acc = tl.zeros([GP, DP], tl.float32)
        for start in range(low, high, BT):
            at = start + t
            next_k, next_v = _keys_values(keys_ptr, values_ptr, base, at + BT, at + BT < high, d, D)
            scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
            if ALIBI:
                scores += slopes[:, None] * (at - end + 1).to(tl.float32)[None, :]
            scores = tl.where((at < high)[None, :], scores, -1e30)
            higher = tl.maximum(top, tl.max(scores, 1))
            weights = tl.exp(scores - higher[:, None])
            shrink = tl.exp(top - higher)
            mass = mass * shrink + tl.sum(weights, 1)
            acc = acc * shrink[:, None] + tl.dot(weights.to(v.dtype), v, input_precision=PRECISION)
            top = higher
            k = next_k
            v = next_v
        if live == 1:
            tl.store(out_ptr + queries, acc / mass[:, None], mask=shown)
        else:
            place = (work * SPLITS + split).to(tl.int64)
            tl.store(part_ptr + place * GP * DP + g[:, None] * DP + d[None, :], acc)
            tl.store(stats_ptr + place * 2 * GP + g, top)
            tl.store(stats_ptr + place * 2 * GP + GP + g, mass)
            tl.debug_barrier()
            if tl.atomic_add(arrived_ptr + work, 1, sem="acq_rel") == live - 1:
                _join(out_ptr, part_ptr, stats_ptr, work, live, queries, shown, g, d, GP, DP, SPLITS)
                tl.store(arrived_ptr + work, 0)


@triton.jit
def _join(out_ptr, part_ptr, stats_ptr, work, live, queries, shown, g, d, GP: tl.constexpr, DP: tl.constexpr,
          SPLITS: tl.constexpr):  # fmt: skip
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
