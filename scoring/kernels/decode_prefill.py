"""Kernels of a prefill chunk beyond those of a decode step: attention, updates of the state, and new slots."""

# mypy: ignore-errors
# ruff: noqa: N803, N806

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from scoring.kernels.decode_attention import cap, constants_of_heads, keys_values, normed_heads
from scoring.kernels.decode_gemv import cache_place, split_heads


@triton.jit
def attend_prompt(q_ptr, keys_ptr, values_ptr, out_ptr, slopes_ptr, tiles_ptr, table_ptr, TILES, WIDTH, BLOCKS, scale,
                  limit, BLOCK: tl.constexpr, H: tl.constexpr, KV: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
                  GP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, WINDOW: tl.constexpr, ALIBI: tl.constexpr,
                  CAP: tl.constexpr, PRECISION: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    """Compute out [T, H, D] of q [T, H, D] over keys and values [KV, BLOCKS, BLOCK, D]. Grid (tiles, KV).

    A tile is up to BM consecutive tokens of one slot; a program takes its queries of one key head, all GP
    heads of the group, over the slot's keys up to the last of them, earlier chunks included. tiles
    [4, TILES]: the first token's row, the number of tokens, the slot, the first token's position. BN divides BLOCK.
    """
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    tile = tl.program_id(0)
    head = tl.program_id(1)
    first = tl.load(tiles_ptr + tile)
    count = tl.load(tiles_ptr + TILES + tile)
    slot = tl.load(tiles_ptr + 2 * TILES + tile).to(tl.int64)
    position = tl.load(tiles_ptr + 3 * TILES + tile)
    G: tl.constexpr = H // KV
    if count > 0:
        r = tl.arange(0, BM * GP)
        token = r // GP
        g = r % GP
        d = tl.arange(0, DP)
        t = tl.arange(0, BN)
        shown = ((token < count) & (g < G))[:, None] & (d < D)[None, :]
        queries = (((first + token).to(tl.int64) * H + head * G + g) * D)[:, None] + d[None, :]
        q = tl.load(q_ptr + queries, mask=shown, other=0.0)
        own = position + token
        end = position + count
        if ALIBI:
            slopes = tl.load(slopes_ptr + head * G + g, mask=g < G, other=0.0)
        low = 0
        if WINDOW > 0:
            low = tl.maximum(position - WINDOW + 1, 0) // BN * BN
        top = tl.full([BM * GP], -1e30, tl.float32)
        mass = tl.zeros([BM * GP], tl.float32)
        acc = tl.zeros([BM * GP, DP], tl.float32)
        for start in range(low, end, BN):
            at = start + t
            block = tl.load(table_ptr + slot * WIDTH + start // BLOCK)
            k, v = keys_values(keys_ptr, values_ptr, cache_place(block, start, head, BLOCKS, BLOCK), t, at < end, d, D)
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
            acc = acc * shrink[:, None] + tl.dot(weights.to(v.dtype), v, input_precision=PRECISION)
            top = higher
        tl.store(out_ptr + queries, acc / mass[:, None], mask=shown)


@triton.jit
def scatter_normed(qkv_ptr, bias_ptr, q_ptr, keys_ptr, values_ptr, q_gain_ptr, k_gain_ptr, cos_ptr, sin_ptr,
                   slots_ptr, positions_ptr, table_ptr, WIDTH, BLOCKS, eps, BLOCK: tl.constexpr,
                   H: tl.constexpr, KV: tl.constexpr, D: tl.constexpr,
                   DP: tl.constexpr, BH: tl.constexpr, HALF: tl.constexpr, INTERLEAVED: tl.constexpr,
                   ROTARY: tl.constexpr, BIAS: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    """Norm and rotate queries and keys of the fused product [T, (H + 2 KV) D]; write q and the cache.

    A program takes BH heads of a token, all queries, all keys or all values: BH divides H and KV. Grid (T, heads / BH).
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
    position = tl.load(positions_ptr + row)
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
        if part == 1:
            gain_ptr = k_gain_ptr
        other, gain, gain_other, cos, sin = constants_of_heads(gain_ptr, cos_ptr, sin_ptr, position, d, D, HALF,
                                                               INTERLEAVED, ROTARY)  # fmt: skip
        x = normed_heads(product, bias_ptr, base, heads >= 0, d, other, gain, gain_other, cos, sin, eps, D, ROTARY,
                         BIAS)  # fmt: skip
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
def admit(records_ptr, seen_ptr, temperature_ptr, top_k_ptr, top_p_ptr, penalty_ptr, seed_ptr, forbidden_ptr,
          until_ptr, constrained_ptr, V, WIDTH: tl.constexpr, HELD: tl.constexpr, BV: tl.constexpr):  # fmt: skip
    """Empty slots and set their sampling parameters from records [n, WIDTH] int32. Grid (n, V / BV).

    A record: slot, top-k, length until which tokens are forbidden, temperature, top-p and penalty as float32 bits, the
    seed's low and high word, whether the slot is constrained, the forbidden tokens.
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
        low = tl.load(record + 6).to(tl.int64) & 0xFFFFFFFF
        tl.store(seed_ptr + slot, low | (tl.load(record + 7).to(tl.int64) << 32))
        tl.store(constrained_ptr + slot, tl.load(record + 8))
        for index in tl.static_range(HELD):
            tl.store(forbidden_ptr + slot * HELD + index, tl.load(record + 9 + index))


@triton.jit
def extend(grown_ptr, table_ptr, COUNT, BN: tl.constexpr):
    """Enter blocks in the tables: grown [COUNT, 2] int32 is a place in table, and the block. Grid (COUNT / BN,)."""
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    place = tl.load(grown_ptr + 2 * n, mask=n < COUNT, other=0)
    block = tl.load(grown_ptr + 2 * n + 1, mask=n < COUNT, other=0)
    tl.store(table_ptr + place, block, mask=n < COUNT)
