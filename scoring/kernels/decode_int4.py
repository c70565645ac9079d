"""Products of single rows with int4 weights, whose groups of inputs share a scale and, if not symmetric, a zero point.

A group of GROUP inputs is GROUP / 8 words: number j of word i is input j GROUP / 8 + i, so that eight reads of inputs
are contiguous. A number becomes float32 without conversion: as bits 16 to 19 of a float between 1 and 2 it is that
float less 1, times 128. The factor goes to the scale, and what the ones add up to is taken off the sum, which costs
seven of the sum's 24 bits.
"""

# mypy: ignore-errors
# ruff: noqa: N803, SIM108

import triton
import triton.language as tl

from scoring.kernels.decode_norms import inputs, statistics


@triton.jit
def words(w_ptr, rows, inside, group, G, GROUP: tl.constexpr):
    """Load words [rows, groups, GROUP / 8] of weights [N, G, GROUP / 8]."""
    width: tl.constexpr = GROUP // 8
    at = (rows[:, None] * G + group[None, :]) * width
    mask = inside[:, None] & (group < G)[None, :]
    return tl.load(w_ptr + at[:, :, None] + tl.arange(0, width)[None, None, :], mask=mask[:, :, None], other=0)


@triton.jit
def scales(scale_ptr, rows, inside, group, G, GROUP: tl.constexpr):
    """Load scales, or zero points, of rows and groups: [rows, groups]; 0 unless weights are in groups."""
    found = 0.0
    if GROUP:
        mask = inside[:, None] & (group < G)[None, :]
        found = tl.load(scale_ptr + rows[:, None] * G + group[None, :], mask=mask, other=0)
    return found


@triton.jit
def _number(w, J: tl.constexpr):
    """Number J of words as a float: 1 plus itself over 128."""
    if J < 4:
        moved = w << (16 - 4 * J)
    else:
        moved = w >> (4 * J - 16)
    return ((moved & 0xF0000) | 0x3F800000).to(tl.float32, bitcast=True)


@triton.jit
def _scaled(sums, total, scale, zero, ZERO: tl.constexpr):
    """Scale sums [rows, groups, words] of a tile, less what the ones and the zero points add up to."""
    if ZERO:
        sums -= (1.0 + zero.to(tl.float32) / 128.0)[:, :, None] * total[None, :, :]
    else:
        sums -= 1.0625 * total[None, :, :]
    return sums * (128.0 * scale.to(tl.float32))[:, :, None]


@triton.jit
def _whole(acc):
    return tl.sum(tl.sum(acc, 2), 1)


@triton.jit
def one_int4(x_ptr, gain_ptr, w_ptr, scale_ptr, zeros_ptr, w, scale, zero, rows, inside, K, eps, BN: tl.constexpr,
             BK: tl.constexpr, ONCE: tl.constexpr, GROUP: tl.constexpr, ZERO: tl.constexpr,
             NORM: tl.constexpr):  # fmt: skip
    """Return sums of BN rows, whose first words w are already loaded, with 1/deviation and mean of x."""
    width: tl.constexpr = GROUP // 8
    several: tl.constexpr = BK // GROUP
    groups = K // GROUP
    acc = tl.zeros([BN, several, width], tl.float32)
    seen = tl.zeros([several, width], tl.float32)
    squares = tl.zeros([several, width], tl.float32)
    for start in range(0, BK if ONCE else K, BK):
        group = start // GROUP + tl.arange(0, several)
        if not ONCE:
            next_w = words(w_ptr, rows, inside, group + several, groups, GROUP)
            next_scale = scales(scale_ptr, rows, inside, group + several, groups, GROUP)
            if ZERO:
                next_zero = scales(zeros_ptr, rows, inside, group + several, groups, GROUP)
        k = group[:, None] * GROUP + tl.arange(0, width)[None, :]
        sums = tl.zeros([BN, several, width], tl.float32)
        total = tl.zeros([several, width], tl.float32)
        for j in tl.static_range(8):
            x, scaled = inputs(x_ptr, gain_ptr, k + j * width, K, NORM)
            sums += _number(w, j) * scaled[None, :, :]
            total += scaled
            if NORM == "layer":
                seen += x
            if NORM != "none":
                squares += x * x
        acc += _scaled(sums, total, scale, zero, ZERO)
        if not ONCE:
            w = next_w
            scale = next_scale
            if ZERO:
                zero = next_zero
    inverse, mean = statistics(tl.sum(seen, 1), tl.sum(squares, 1), K, eps, NORM)
    return _whole(acc), inverse, mean


@triton.jit
def two_int4(x_ptr, gain_ptr, w_ptr, scale_ptr, zeros_ptr, a, b, a_scale, b_scale, a_zero, b_zero, rows_a, rows_b,
             inside, K, eps, BN: tl.constexpr, BK: tl.constexpr, ONCE: tl.constexpr, GROUP: tl.constexpr,
             ZERO: tl.constexpr, NORM: tl.constexpr):  # fmt: skip
    """Do the same as `one_int4` for two sets of rows at once."""
    width: tl.constexpr = GROUP // 8
    several: tl.constexpr = BK // GROUP
    groups = K // GROUP
    acc_a = tl.zeros([BN, several, width], tl.float32)
    acc_b = tl.zeros([BN, several, width], tl.float32)
    seen = tl.zeros([several, width], tl.float32)
    squares = tl.zeros([several, width], tl.float32)
    for start in range(0, BK if ONCE else K, BK):
        group = start // GROUP + tl.arange(0, several)
        if not ONCE:
            following = group + several
            next_a = words(w_ptr, rows_a, inside, following, groups, GROUP)
            next_b = words(w_ptr, rows_b, inside, following, groups, GROUP)
            next_a_scale = scales(scale_ptr, rows_a, inside, following, groups, GROUP)
            next_b_scale = scales(scale_ptr, rows_b, inside, following, groups, GROUP)
            if ZERO:
                next_a_zero = scales(zeros_ptr, rows_a, inside, following, groups, GROUP)
                next_b_zero = scales(zeros_ptr, rows_b, inside, following, groups, GROUP)
        k = group[:, None] * GROUP + tl.arange(0, width)[None, :]
        sums_a = tl.zeros([BN, several, width], tl.float32)
        sums_b = tl.zeros([BN, several, width], tl.float32)
        total = tl.zeros([several, width], tl.float32)
        for j in tl.static_range(8):
            x, scaled = inputs(x_ptr, gain_ptr, k + j * width, K, NORM)
            sums_a += _number(a, j) * scaled[None, :, :]
            sums_b += _number(b, j) * scaled[None, :, :]
            total += scaled
            if NORM == "layer":
                seen += x
            if NORM != "none":
                squares += x * x
        acc_a += _scaled(sums_a, total, a_scale, a_zero, ZERO)
        acc_b += _scaled(sums_b, total, b_scale, b_zero, ZERO)
        if not ONCE:
            a = next_a
            b = next_b
            a_scale = next_a_scale
            b_scale = next_b_scale
            if ZERO:
                a_zero = next_a_zero
                b_zero = next_b_zero
    inverse, mean = statistics(tl.sum(seen, 1), tl.sum(squares, 1), K, eps, NORM)
    return _whole(acc_a), _whole(acc_b), inverse, mean
