"""Low-rank products of adapters beside a product's outputs: each tile of rows by the adapter of its slot.

A tile is a row of a decode step, or up to Q rows of one slot. Its adapter is read on the device, by slot, so that one
graph serves rows of any adapters; a tile of the base leaves at once, its numbers untouched.
"""

# mypy: ignore-errors
# ruff: noqa: N803

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def _tile(tiles_ptr, of_slot_ptr, STRIDE, TILED: tl.constexpr):
    """First row, number of rows and adapter of this program's tile."""
    tile = tl.program_id(0)
    first, count = tile, tl.full([], 1, tl.int32)
    if TILED:
        first = tl.load(tiles_ptr + tile)
        count = tl.load(tiles_ptr + STRIDE + tile)
        slot = tl.load(tiles_ptr + 2 * STRIDE + tile)
    else:
        slot = tl.load(tiles_ptr + tile)
    return first.to(tl.int64), count, tl.load(of_slot_ptr + slot).to(tl.int64)


@triton.jit
def lower(x_ptr, down_ptr, held_ptr, tiles_ptr, of_slot_ptr, STRIDE, ROWS, K, R, PARTS, TILED: tl.constexpr,
          QP: tl.constexpr, RP: tl.constexpr, HP: tl.constexpr, PIECE: tl.constexpr, BK: tl.constexpr,
          PRECISION: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    """Compute held [splits, ROWS, PARTS, HP] float32 of x [rows, K] by down [adapters, PARTS, R, K].

    A program has PIECE inputs and RP ranks; of a single row it reads the adapter's while the launch before still runs.
    Grid (tiles, PARTS times pieces of the rank, splits).
    """
    first, count, adapter = _tile(tiles_ptr, of_slot_ptr, STRIDE, TILED)
    pieces = tl.cdiv(R, RP)
    part, split = tl.program_id(1) // pieces, tl.program_id(2)
    there = (adapter >= 0) & (count > 0)
    down = down_ptr + (adapter * PARTS + part) * R * K
    r = tl.program_id(1) % pieces * RP + tl.arange(0, RP)
    begin = split * PIECE
    if TILED:
        if PDL:
            gdc_wait()
            gdc_launch_dependents()
        if there:
            q = tl.arange(0, QP)
            held = tl.zeros((QP, RP), dtype=tl.float32)
            for at in tl.range(begin, tl.minimum(begin + PIECE, K), BK, num_stages=3):
                k = at + tl.arange(0, BK)
                x = tl.load(x_ptr + (first + q)[:, None] * K + k[None, :],
                            mask=(q < count)[:, None] & (k < K)[None, :], other=0.0)  # fmt: skip
                a = tl.load(down + r[None, :] * K + k[:, None], mask=(r < R)[None, :] & (k < K)[:, None], other=0.0)
                held = tl.dot(x, a, held, input_precision=PRECISION)
            to = held_ptr + ((split * ROWS + first + q)[:, None] * PARTS + part) * HP + r[None, :]
            tl.store(to, held, mask=(q < count)[:, None] & (r < R)[None, :])
    else:
        k = begin + tl.arange(0, PIECE)
        a = tl.load(down + r[:, None] * K + k[None, :], mask=there & (r < R)[:, None] & (k < K)[None, :], other=0.0)
        if PDL:
            gdc_wait()
            gdc_launch_dependents()
        x = tl.load(x_ptr + first * K + k, mask=there & (k < K), other=0.0).to(tl.float32)
        found = tl.sum(a.to(tl.float32) * x[None, :], 1)
        tl.store(held_ptr + ((split * ROWS + first) * PARTS + part) * HP + r, found, mask=there & (r < R))


@triton.jit
def _up(up_ptr, adapter, r, n, R, COLUMNS, end, there):
    """Ranks r and columns n of an adapter's second matrix."""
    return tl.load(up_ptr + (adapter * R + r)[:, None] * COLUMNS + n[None, :],
                   mask=there & (r < R)[:, None] & (n < end)[None, :], other=0.0)  # fmt: skip


@triton.jit
def lift(held_ptr, up_ptr, out_ptr, spans_ptr, tiles_ptr, of_slot_ptr, STRIDE, ROWS, COLUMNS, N, R, PARTS, SPLITS,
         TILED: tl.constexpr, QP: tl.constexpr, RP: tl.constexpr, HP: tl.constexpr, SP: tl.constexpr,
         BN: tl.constexpr, PRECISION: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    """Add held up to out [rows, N], of up [adapters, R, COLUMNS].

    Spans [programs, 3] int32: first column, the one past the last (at most BN on), part. The rank is taken RP at a
    time, as much as shared memory holds. Grid (tiles, programs).
    """
    first, count, adapter = _tile(tiles_ptr, of_slot_ptr, STRIDE, TILED)
    there = (adapter >= 0) & (count > 0)
    span = spans_ptr + tl.program_id(1) * 3
    begin, end, part = tl.load(span), tl.load(span + 1), tl.load(span + 2)
    r, s, n = tl.arange(0, RP), tl.arange(0, SP), begin + tl.arange(0, BN)
    b = _up(up_ptr, adapter, r, n, R, COLUMNS, end, there)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    if TILED:
        if there:
            q = tl.arange(0, QP)
            added = tl.zeros((QP, BN), dtype=tl.float32)
            for at in range(0, R, RP):
                if at > 0:
                    r += RP
                    b = _up(up_ptr, adapter, r, n, R, COLUMNS, end, there)
                held = tl.zeros((QP, RP), dtype=tl.float32)
                for split in range(SPLITS):
                    some = held_ptr + ((split * ROWS + first + q)[:, None] * PARTS + part) * HP + r[None, :]
                    held += tl.load(some, mask=(q < count)[:, None] & (r < R)[None, :], other=0.0)
                added = tl.dot(held.to(b.dtype), b, added, input_precision=PRECISION)
            to = out_ptr + (first + q)[:, None] * N + n[None, :]
            inside = (q < count)[:, None] & (n < end)[None, :]
            tl.store(to, tl.load(to, mask=inside, other=0.0) + added.to(out_ptr.dtype.element_ty), mask=inside)
    else:
        to = out_ptr + first * N + n
        before = tl.load(to, mask=there & (n < end), other=0.0)
        added = tl.zeros((BN,), dtype=tl.float32)
        for at in range(0, R, RP):
            if at > 0:
                r += RP
                b = _up(up_ptr, adapter, r, n, R, COLUMNS, end, there)
            some = held_ptr + ((s[:, None] * ROWS + first) * PARTS + part) * HP + r[None, :]
            held = tl.sum(tl.load(some, mask=there & (s < SPLITS)[:, None] & (r < R)[None, :], other=0.0), 0)
            added += tl.sum(held.to(b.dtype).to(tl.float32)[:, None] * b.to(tl.float32), 0)
        tl.store(to, before + added.to(out_ptr.dtype.element_ty), mask=there & (n < end))
