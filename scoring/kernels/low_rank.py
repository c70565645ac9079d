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
def _lowered(x_ptr, down_ptr, first, count, begin, end, K, R, QP: tl.constexpr, RP: tl.constexpr, BK: tl.constexpr,
             PRECISION: tl.constexpr):  # fmt: skip
    """Compute x [QP, K] down^T [K, RP] over inputs `begin` to `end`, in float32."""
    q, r = tl.arange(0, QP), tl.arange(0, RP)
    held = tl.zeros((QP, RP), dtype=tl.float32)
    for at in range(begin, end, BK):
        k = at + tl.arange(0, BK)
        x = tl.load(x_ptr + (first + q)[:, None] * K + k[None, :],
                    mask=(q < count)[:, None] & (k < end)[None, :], other=0.0)  # fmt: skip
        a = tl.load(down_ptr + r[None, :] * K + k[:, None], mask=(r < R)[None, :] & (k < end)[:, None], other=0.0)
        held = tl.dot(x, a, held, input_precision=PRECISION)
    return held


@triton.jit
def lower(x_ptr, down_ptr, held_ptr, tiles_ptr, of_slot_ptr, STRIDE, ROWS, K, R, PARTS, PIECE, TILED: tl.constexpr,
          QP: tl.constexpr, RP: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
          PDL: tl.constexpr):  # fmt: skip
    """Compute held [splits, ROWS, PARTS, RP] float32 of x [rows, K] by down [adapters, PARTS, R, K].

    A program has PIECE inputs. Grid (tiles, PARTS, splits).
    """
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    first, count, adapter = _tile(tiles_ptr, of_slot_ptr, STRIDE, TILED)
    if (adapter < 0) | (count == 0):
        return
    part, split = tl.program_id(1), tl.program_id(2)
    begin = split * PIECE
    found = _lowered(x_ptr, down_ptr + (adapter * PARTS + part) * R * K, first, count, begin,
                     tl.minimum(begin + PIECE, K), K, R, QP, RP, BK, PRECISION)  # fmt: skip
    q, r = tl.arange(0, QP), tl.arange(0, RP)
    to = held_ptr + ((split * ROWS + first + q)[:, None] * PARTS + part) * RP + r[None, :]
    tl.store(to, found, mask=(q < count)[:, None] & (r >= 0)[None, :])


@triton.jit
def lift(x_ptr, down_ptr, held_ptr, up_ptr, out_ptr, spans_ptr, tiles_ptr, of_slot_ptr, STRIDE, ROWS, K, COLUMNS, N, R,
         PARTS, SPLITS, TILED: tl.constexpr, WHOLE: tl.constexpr, QP: tl.constexpr, RP: tl.constexpr, BK: tl.constexpr,
         BN: tl.constexpr, PRECISION: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    """Add held up to out [rows, N], of up [adapters, R, COLUMNS]; WHOLE computes `held` here, else `lower` did.

    Spans [programs, 3] int32: first column, the one past the last, part. Grid (tiles, programs).
    """
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    first, count, adapter = _tile(tiles_ptr, of_slot_ptr, STRIDE, TILED)
    if (adapter < 0) | (count == 0):
        return
    span = spans_ptr + tl.program_id(1) * 3
    begin, end, part = tl.load(span), tl.load(span + 1), tl.load(span + 2)
    q, r = tl.arange(0, QP), tl.arange(0, RP)
    if WHOLE:
        held = _lowered(x_ptr, down_ptr + (adapter * PARTS + part) * R * K, first, count, 0, K, K, R, QP, RP, BK,
                        PRECISION)  # fmt: skip
    else:
        held = tl.zeros((QP, RP), dtype=tl.float32)
        for split in range(SPLITS):
            some = held_ptr + ((split * ROWS + first + q)[:, None] * PARTS + part) * RP + r[None, :]
            held += tl.load(some, mask=(q < count)[:, None] & (r >= 0)[None, :], other=0.0)
    narrow = held.to(up_ptr.dtype.element_ty)
    for at in range(begin, end, BN):
        n = at + tl.arange(0, BN)
        b = tl.load(up_ptr + (adapter * R + r)[:, None] * COLUMNS + n[None, :],
                    mask=(r < R)[:, None] & (n < end)[None, :], other=0.0)  # fmt: skip
        to = out_ptr + (first + q)[:, None] * N + n[None, :]
        inside = (q < count)[:, None] & (n < end)[None, :]
        added = tl.dot(narrow, b, input_precision=PRECISION).to(out_ptr.dtype.element_ty)
        tl.store(to, tl.load(to, mask=inside, other=0.0) + added, mask=inside)
