"""Products of single rows with int4 weights, whose groups of inputs share a scale and, if not symmetric, a zero point.

A group of GROUP inputs is GROUP / 8 words: number j of word i is input j GROUP / 8 + i, so that eight reads of inputs
are contiguous. A number becomes float32 without conversion: or-ed into the mantissa of 2^23 it is 2^23 plus itself
times its place, and the place is taken off the input.
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
def _number(w, J: tl.constexpr, ZERO: tl.constexpr):
    """Number J of words, times 16 to the power J % 4; less 8 if they have no zero points."""
    place: tl.constexpr = 16 ** (J % 4)
    half = w
    if J >= 4:
        half = w >> 16
    read = ((half & (15 * place)) | 0x4B000000).to(tl.float32, bitcast=True)
    if ZERO:
        number = read - 8388608.0
    else:
        number = read - (8388608.0 + 8.0 * place)
    return number


@triton.jit
def _scaled(sums, total, scale_ptr, zeros_ptr, rows, inside, group, G, ZERO: tl.constexpr):
    """Scale sums [BN, several, width] of a tile, less zero point times the sum of inputs [several, width]."""
    at = rows[:, None] * G + group[None, :]
    mask = inside[:, None] & (group < G)[None, :]
    scale = tl.load(scale_ptr + at, mask=mask, other=0.0).to(tl.float32)
    if ZERO:
        zero = tl.load(zeros_ptr + at, mask=mask, other=0).to(tl.float32)
        sums -= zero[:, :, None] * total[None, :, :]
    return sums * scale[:, :, None]


@triton.jit
def _whole(acc):
    return tl.sum(tl.sum(acc, 2), 1)


@triton.jit
def one_int4(x_ptr, gain_ptr, w_ptr, scale_ptr, zeros_ptr, w, rows, inside, K, eps, BN: tl.constexpr, BK: tl.constexpr,
             GROUP: tl.constexpr, ZERO: tl.constexpr, NORM: tl.constexpr):  # fmt: skip
    """Return sums of BN rows, whose first words w are already loaded, with 1/deviation and mean of x."""
    width: tl.constexpr = GROUP // 8
    several: tl.constexpr = BK // GROUP
    groups = K // GROUP
    group = tl.arange(0, several)
    acc = tl.zeros([BN, several, width], tl.float32)
    seen = tl.zeros([several, width], tl.float32)
    squares = tl.zeros([several, width], tl.float32)
    for start in range(0, groups, several):
        following = words(w_ptr, rows, inside, group + start + several, groups, GROUP)
        k = (group + start)[:, None] * GROUP + tl.arange(0, width)[None, :]
        sums = tl.zeros([BN, several, width], tl.float32)
        total = tl.zeros([several, width], tl.float32)
        for j in tl.static_range(8):
            x, scaled = inputs(x_ptr, gain_ptr, k + j * width, K, NORM)
            sums += _number(w, j, ZERO) * (scaled * (1.0 / 16 ** (j % 4)))[None, :, :]
            if ZERO:
                total += scaled
            if NORM != "none":
                seen += x
                squares += x * x
        acc += _scaled(sums, total, scale_ptr, zeros_ptr, rows, inside, group + start, groups, ZERO)
        w = following
    inverse, mean = statistics(tl.sum(seen, 1), tl.sum(squares, 1), K, eps, NORM)
    return _whole(acc), inverse, mean


@triton.jit
def two_int4(x_ptr, gain_ptr, w_ptr, scale_ptr, zeros_ptr, a, b, rows_a, rows_b, inside, K, eps, BN: tl.constexpr,
             BK: tl.constexpr, GROUP: tl.constexpr, ZERO: tl.constexpr, NORM: tl.constexpr):  # fmt: skip
    """Do the same as `one_int4` for two sets of rows at once."""
    width: tl.constexpr = GROUP // 8
    several: tl.constexpr = BK // GROUP
    groups = K // GROUP
    group = tl.arange(0, several)
    acc_a = tl.zeros([BN, several, width], tl.float32)
    acc_b = tl.zeros([BN, several, width], tl.float32)
    seen = tl.zeros([several, width], tl.float32)
    squares = tl.zeros([several, width], tl.float32)
    for start in range(0, groups, several):
        next_a = words(w_ptr, rows_a, inside, group + start + several, groups, GROUP)
        next_b = words(w_ptr, rows_b, inside, group + start + several, groups, GROUP)
        k = (group + start)[:, None] * GROUP + tl.arange(0, width)[None, :]
        sums_a = tl.zeros([BN, several, width], tl.float32)
        sums_b = tl.zeros([BN, several, width], tl.float32)
        total = tl.zeros([several, width], tl.float32)
        for j in tl.static_range(8):
            x, scaled = inputs(x_ptr, gain_ptr, k + j * width, K, NORM)
            placed = (scaled * (1.0 / 16 ** (j % 4)))[None, :, :]
            sums_a += _number(a, j, ZERO) * placed
            sums_b += _number(b, j, ZERO) * placed
            if ZERO:
                total += scaled
            if NORM != "none":
                seen += x
                squares += x * x
        acc_a += _scaled(sums_a, total, scale_ptr, zeros_ptr, rows_a, inside, group + start, groups, ZERO)
        acc_b += _scaled(sums_b, total, scale_ptr, zeros_ptr, rows_b, inside, group + start, groups, ZERO)
        a = next_a
        b = next_b
    inverse, mean = statistics(tl.sum(seen, 1), tl.sum(squares, 1), K, eps, NORM)
    return _whole(acc_a), _whole(acc_b), inverse, mean
