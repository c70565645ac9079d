"""Products of single rows with int4 weights, whose groups of inputs share a scale and, if not symmetric, a zero point.

A group of GROUP inputs is GROUP / 8 words: number j of word i is input j GROUP / 8 + i. A unit is the words of a group
that a lane loads at once, four if the group has as many. Inputs become integers of 16 bits, with one scale a unit, so
that products and their sums are exact: an instruction multiplies four numbers by four bytes of inputs and adds them up.
Two of them, over high and low bytes, take fewer instructions than four conversions and four sums in float32.
"""

# mypy: ignore-errors
# ruff: noqa: N803, N806

import triton
import triton.language as tl

from scoring.kernels.decode_norms import inputs

_COMPILED = tl.constexpr(not triton.knobs.runtime.interpret)
_ROUND = tl.constexpr(12582912.0)  # 1.5 * 2^23: a float32 with it added has the nearest integer in its low bits
_LARGEST = tl.constexpr(32767.0)


@triton.jit
def words(w_ptr, rows, inside, unit, U, GROUP: tl.constexpr):
    """Load words [rows, units, words of a unit] of weights [N, U, words of a unit]."""
    V: tl.constexpr = min(4, GROUP // 8)
    at = (rows[:, None] * U + unit[None, :]) * V
    mask = inside[:, None] & (unit < U)[None, :]
    return tl.load(w_ptr + at[:, :, None] + tl.arange(0, V)[None, None, :], mask=mask[:, :, None], other=0)


@triton.jit
def scales(scale_ptr, rows, inside, unit, U, GROUP: tl.constexpr):
    """Load the scales, or zero points, of rows and units: [rows, units]; 0 unless weights are in groups."""
    found = 0.0
    if GROUP:
        P: tl.constexpr = GROUP // 8 // min(4, GROUP // 8)
        mask = inside[:, None] & (unit < U)[None, :]
        found = tl.load(scale_ptr + rows[:, None] * (U // P) + (unit // P)[None, :], mask=mask, other=0)
    return found


@triton.jit
def _dot4(a, b, c, SIGNED: tl.constexpr):
    """Add to c the products of the four bytes of a, unsigned, and of b, which may be signed."""
    if _COMPILED:
        if SIGNED:
            c = tl.inline_asm_elementwise("dp4a.u32.s32 $0, $1, $2, $3;", "=r,r,r,r", [a, b, c], tl.int32, True, 1)
        else:
            c = tl.inline_asm_elementwise("dp4a.u32.u32 $0, $1, $2, $3;", "=r,r,r,r", [a, b, c], tl.int32, True, 1)
    else:
        for place in tl.static_range(4):
            byte = (b >> (8 * place)) & 0xFF
            if SIGNED:
                byte = (byte ^ 0x80) - 0x80
            c = c + ((a >> (8 * place)) & 0xFF) * byte
    return c


@triton.jit
def _bytes(a, b, c, d, FROM: tl.constexpr):
    """Pack a byte of each of four integers, the one at bit FROM."""
    low = ((a >> FROM) & 0xFF) | (((b >> FROM) & 0xFF) << 8)
    return low | (((c >> FROM) & 0xFF) << 16) | ((d >> FROM) << 24)


@triton.jit
def _rounded(x, factor):
    return (x * factor + _ROUND).to(tl.int32, bitcast=True)


@triton.jit
def integers(source, gain_ptr, unit, K, GROUP: tl.constexpr, NORM: tl.constexpr, POST: tl.constexpr):
    """Return a unit's inputs as bytes: high of even numbers and of odd ones, low likewise; their sum and scale.

    Also what they add to the norm's sums of x and of its squares, [1, units, words of a unit].
    """
    V: tl.constexpr = min(4, GROUP // 8)
    P: tl.constexpr = GROUP // 8 // V
    W: tl.constexpr = GROUP // 8
    k = ((unit // P) * GROUP + unit % P * V)[None, :, None] + tl.arange(0, V)[None, None, :]
    x0, y0 = inputs(source, gain_ptr, k, K, NORM, POST)
    x1, y1 = inputs(source, gain_ptr, k + W, K, NORM, POST)
    x2, y2 = inputs(source, gain_ptr, k + 2 * W, K, NORM, POST)
    x3, y3 = inputs(source, gain_ptr, k + 3 * W, K, NORM, POST)
    x4, y4 = inputs(source, gain_ptr, k + 4 * W, K, NORM, POST)
    x5, y5 = inputs(source, gain_ptr, k + 5 * W, K, NORM, POST)
    x6, y6 = inputs(source, gain_ptr, k + 6 * W, K, NORM, POST)
    x7, y7 = inputs(source, gain_ptr, k + 7 * W, K, NORM, POST)
    seen = 0.0 * x0
    squares = 0.0 * x0
    if NORM == "layer":
        seen = x0 + x1 + x2 + x3 + x4 + x5 + x6 + x7
    if NORM != "none":
        squares = x0 * x0 + x1 * x1 + x2 * x2 + x3 * x3 + x4 * x4 + x5 * x5 + x6 * x6 + x7 * x7
    top = tl.maximum(tl.maximum(tl.abs(y0), tl.abs(y1)), tl.maximum(tl.abs(y2), tl.abs(y3)))
    top = tl.maximum(top, tl.maximum(tl.maximum(tl.abs(y4), tl.abs(y5)), tl.maximum(tl.abs(y6), tl.abs(y7))))
    most = tl.maximum(tl.max(top, 2), 1e-30)
    factor = (1.0 / most * _LARGEST)[:, :, None]
    y0 = _rounded(y0, factor)
    y1 = _rounded(y1, factor)
    y2 = _rounded(y2, factor)
    y3 = _rounded(y3, factor)
    y4 = _rounded(y4, factor)
    y5 = _rounded(y5, factor)
    y6 = _rounded(y6, factor)
    y7 = _rounded(y7, factor)
    even = _bytes(y0, y2, y4, y6, 8)
    odd = _bytes(y1, y3, y5, y7, 8)
    even_low = _bytes(y0, y2, y4, y6, 0)
    odd_low = _bytes(y1, y3, y5, y7, 0)
    ones = (even & 0) + 0x01010101
    total = tl.sum(_both(ones, ones, even, odd, even_low, odd_low), 2)
    return even, odd, even_low, odd_low, total, most / _LARGEST, seen, squares


@triton.jit
def _both(w_even, w_odd, even, odd, even_low, odd_low):
    """Products of even and odd numbers of words with inputs of 16 bits, added up."""
    none = (w_even + even) & 0
    high = _dot4(w_odd, odd, _dot4(w_even, even, none, True), True)
    low = _dot4(w_odd, odd_low, _dot4(w_even, even_low, none, False), False)
    return (high << 8) + low


@triton.jit
def sums(w, scale, zero, x, ZERO: tl.constexpr):
    """Return the sums of words [rows, units, words of a unit] with inputs x that `integers` made, scaled: [rows]."""
    even, odd, even_low, odd_low, total, factor = x
    numbers = _both(w & 0x0F0F0F0F, (w >> 4) & 0x0F0F0F0F, even, odd, even_low, odd_low)
    found = tl.sum(numbers, 2)
    if ZERO:
        found -= zero.to(tl.int32) * total
    else:
        found -= 8 * total
    return tl.sum(found.to(tl.float32) * (scale.to(tl.float32) * factor), 1)
