"""Attention of a few new tokens of each sequence at once over the live part of its cache, split over programs."""

# mypy: ignore-errors
# ruff: noqa: N803, N806

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from scoring.kernels.decode_attention import attend_span, finish, keys_values, span_of, tile_place


@triton.jit
def attend_drafts(q_ptr, keys_ptr, values_ptr, out_ptr, part_ptr, stats_ptr, arrived_ptr, slopes_ptr, tiles_ptr,
                  table_ptr, sinks_ptr, TILES, WIDTH, BLOCKS, scale, limit, BLOCK: tl.constexpr, H: tl.constexpr,
                  KV: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, GG: tl.constexpr, GP: tl.constexpr,
                  BT: tl.constexpr, LEAST: tl.constexpr, SPLITS: tl.constexpr, WINDOW: tl.constexpr,
                  ALIBI: tl.constexpr, CAP: tl.constexpr, SINKS: tl.constexpr, PRECISION: tl.constexpr,
                  PDL: tl.constexpr):  # fmt: skip
    """Compute out [T, H, D] of q [T, H, D] over keys and values [KV, BLOCKS, BLOCK, D]. Grid (tiles * KV, SPLITS).

    A tile is up to GP / GG consecutive tokens of one slot, each seeing the keys up to its own, which are all in the
    cache; tiles [5, TILES]: the first token's row, the number of tokens, the slot, the first token's position, and the
    slot's tokens of this step before it. Older keys are read before waiting for the kernel that writes the new ones. A
    program reads a span of one key head for all of its group's queries (of which GG is the next power of two), so that
    several tokens read keys once. Spans are joined as `decode_attention.attend` joins them.
    """
    work = tl.program_id(0)
    split = tl.program_id(1)
    tile = work // KV
    head = work % KV
    G: tl.constexpr = H // KV
    row = tl.load(tiles_ptr + tile).to(tl.int64)
    count = tl.load(tiles_ptr + TILES + tile)
    slot = tl.load(tiles_ptr + 2 * TILES + tile).to(tl.int64)
    position = tl.load(tiles_ptr + 3 * TILES + tile)
    low, high, live = span_of(position, position + count, split, LEAST, BT, SPLITS, WINDOW)
    r = tl.arange(0, GP)
    token = r // GG
    g = r % GG
    d = tl.arange(0, DP)
    at = low + tl.arange(0, BT)
    row_ptr = table_ptr + slot * WIDTH
    place = tile_place(row_ptr, low, high, head, BLOCKS, BLOCK)
    following = tile_place(row_ptr, low + BT, high, head, BLOCKS, BLOCK)
    fresh = position - tl.load(tiles_ptr + 4 * TILES + tile)  # from here on, keys are this step's
    k, v = keys_values(keys_ptr, values_ptr, place, at - low, (at < high) & (at < fresh), d, D)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    if (count > 0) & (split < live):
        new_k, new_v = keys_values(keys_ptr, values_ptr, place, at - low, (at < high) & (at >= fresh), d, D)
        k = tl.where((at >= fresh)[:, None], new_k, k)
        v = tl.where((at >= fresh)[:, None], new_v, v)
        queries = ((row + token[:, None]) * H + head * G + g[:, None]) * D + d[None, :]
        shown = ((token < count) & (g < G))[:, None] & (d < D)[None, :]
        q = tl.load(q_ptr + queries, mask=shown, other=0.0)
        acc, mass, top = attend_span(q, k, v, keys_ptr, values_ptr, row_ptr, following, slopes_ptr + head * G + g,
                                     sinks_ptr + head * G + g, g < G, position + token, split, head, low, high, BLOCKS,
                                     scale, limit, d, BLOCK, D, DP, GP, BT, WINDOW, ALIBI, CAP, SINKS,
                                     PRECISION)  # fmt: skip
        finish(out_ptr, part_ptr, stats_ptr, arrived_ptr, acc, mass, top, work, split, live, queries, shown, r, d, GP,
               DP, SPLITS)  # fmt: skip
