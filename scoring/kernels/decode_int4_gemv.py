"""Products of single rows with int4 weights, norms and what follows fused, by programs that stay for many rows.

What a program does to its inputs before the first product, 200 instructions a lane, is done once: it takes every
G-th tile of rows, G being the programs of a batch row, and the words of the next are on their way meanwhile.
Inputs of a tile are all that there are.
"""

# mypy: ignore-errors
# ruff: noqa: N803, N806

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from scoring.kernels.decode_gemv import activation, extras, pairs_of, place_of, rotation, table_row, write_pair
from scoring.kernels.decode_int4 import integers, scales, sums, words
from scoring.kernels.decode_norms import added, statistics


@triton.jit
def _read(w_ptr, scale_ptr, zeros_ptr, rows, N, K, BK: tl.constexpr, GROUP: tl.constexpr, ZERO: tl.constexpr):
    """Load rows of weights: words, scales and zero points of all units; nothing from the N-th row on."""
    UNIT: tl.constexpr = 8 * min(4, GROUP // 8)
    unit = tl.arange(0, BK // UNIT)
    w = words(w_ptr, rows, rows < N, unit, K // UNIT, GROUP)
    scale = scales(scale_ptr, rows, rows < N, unit, K // UNIT, GROUP)
    zero = scales(zeros_ptr, rows, rows < N, unit, K // UNIT, GROUP if ZERO else 0)
    return w, scale, zero


@triton.jit
def _prepared(x_ptr, y_ptr, post_ptr, new_ptr, gain_ptr, row, tile, K, eps, post_eps, factor, BK: tl.constexpr,
              GROUP: tl.constexpr, NORM: tl.constexpr, POST: tl.constexpr):  # fmt: skip
    """Return a row's inputs as integers, with 1/deviation and mean of x."""
    UNIT: tl.constexpr = 8 * min(4, GROUP // 8)
    source = added(x_ptr, y_ptr, post_ptr, new_ptr, row, tile, K, post_eps, factor, BK, POST)
    even, odd, even_low, odd_low, total, scale, seen, squares = integers(source, gain_ptr, tl.arange(0, BK // UNIT), K,
                                                                         GROUP, NORM, POST)  # fmt: skip
    inverse, mean = statistics(tl.ravel(seen), tl.ravel(squares), K, eps, NORM)
    return (even, odd, even_low, odd_low, total, scale), inverse, mean


@triton.jit
def gemv(x_ptr, y_ptr, post_ptr, new_ptr, gain_ptr, w_ptr, scale_ptr, gains_ptr, bias_ptr, out_ptr, N, K, eps,
         post_eps, factor, zeros_ptr, BN: tl.constexpr, BK: tl.constexpr, NORM: tl.constexpr, ACT: tl.constexpr,
         BIAS: tl.constexpr, GROUP: tl.constexpr, ZERO: tl.constexpr, ADD: tl.constexpr, POST: tl.constexpr,
         ROWS: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    """Do what `decode_gemv.gemv` does. Grid (B G,)."""
    row, first = place_of(ROWS)
    step = tl.num_programs(0) // ROWS
    w, scale, zero = _read(w_ptr, scale_ptr, zeros_ptr, first * BN + tl.arange(0, BN), N, K, BK, GROUP, ZERO)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    x, inverse, mean = _prepared(x_ptr, y_ptr, post_ptr, new_ptr, gain_ptr, row, first, K, eps, post_eps, factor, BK,
                                 GROUP, NORM, POST)  # fmt: skip
    for tile in range(first, tl.cdiv(N, BN), step):
        rows = tile * BN + tl.arange(0, BN)
        inside = rows < N
        next_w, next_scale, next_zero = _read(w_ptr, scale_ptr, zeros_ptr, rows + step * BN, N, K, BK, GROUP, ZERO)
        _by_row, gains, bias = extras(rows, inside, scale_ptr, gains_ptr, bias_ptr, False, NORM, BIAS)
        old = 0.0
        if ADD:
            old = tl.load(out_ptr + row * N + rows, mask=inside, other=0.0)
        y = activation((sums(w, scale, zero, x, ZERO) - mean * gains) * inverse + bias, ACT)
        if not POST:
            y *= factor
        tl.store(out_ptr + row * N + rows, old + y, mask=inside)
        w, scale, zero = next_w, next_scale, next_zero


@triton.jit
def gemv_gated(x_ptr, y_ptr, post_ptr, new_ptr, gain_ptr, w_ptr, scale_ptr, gains_ptr, bias_ptr, out_ptr, N, K, eps,
               post_eps, factor, zeros_ptr, BN: tl.constexpr, BK: tl.constexpr, NORM: tl.constexpr, ACT: tl.constexpr,
               BIAS: tl.constexpr, GROUP: tl.constexpr, ZERO: tl.constexpr, POST: tl.constexpr, ROWS: tl.constexpr,
               PDL: tl.constexpr):  # fmt: skip
    """Do what `decode_gemv.gemv_gated` does. Grid (B G,)."""
    row, first = place_of(ROWS)
    step = tl.num_programs(0) // ROWS
    rows = first * BN + tl.arange(0, BN)
    a, a_scale, a_zero = _read(w_ptr, scale_ptr, zeros_ptr, rows, N, K, BK, GROUP, ZERO)
    b, b_scale, b_zero = _read(w_ptr, scale_ptr, zeros_ptr, rows + N, 2 * N, K, BK, GROUP, ZERO)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    x, inverse, mean = _prepared(x_ptr, y_ptr, post_ptr, new_ptr, gain_ptr, row, first, K, eps, post_eps, factor, BK,
                                 GROUP, NORM, POST)  # fmt: skip
    for tile in range(first, tl.cdiv(N, BN), step):
        gate = tile * BN + tl.arange(0, BN)
        inside = gate < N
        up = gate + N
        after = gate + step * BN
        next_a, next_a_scale, next_a_zero = _read(w_ptr, scale_ptr, zeros_ptr, after, N, K, BK, GROUP, ZERO)
        next_b, next_b_scale, next_b_zero = _read(w_ptr, scale_ptr, zeros_ptr, after + N, 2 * N, K, BK, GROUP, ZERO)
        _by_row, a_gains, a_bias = extras(gate, inside, scale_ptr, gains_ptr, bias_ptr, False, NORM, BIAS)
        _by_row, b_gains, b_bias = extras(up, inside, scale_ptr, gains_ptr, bias_ptr, False, NORM, BIAS)
        gated = (sums(a, a_scale, a_zero, x, ZERO) - mean * a_gains) * inverse + a_bias
        y = (sums(b, b_scale, b_zero, x, ZERO) - mean * b_gains) * inverse + b_bias
        tl.store(out_ptr + row * N + gate, activation(gated, ACT) * y, mask=inside)
        a, a_scale, a_zero = next_a, next_a_scale, next_a_zero
        b, b_scale, b_zero = next_b, next_b_scale, next_b_zero


@triton.jit
def gemv_qkv(x_ptr, y_ptr, post_ptr, new_ptr, gain_ptr, w_ptr, scale_ptr, gains_ptr, bias_ptr, q_ptr, keys_ptr,
             values_ptr, cos_ptr, sin_ptr, slots_ptr, lengths_ptr, table_ptr, long_ptr, K, WIDTH, BLOCKS, eps, post_eps,
             factor, zeros_ptr, BN: tl.constexpr, BK: tl.constexpr, BLOCK: tl.constexpr, NORM: tl.constexpr,
             BIAS: tl.constexpr, GROUP: tl.constexpr, ZERO: tl.constexpr, H: tl.constexpr, KV: tl.constexpr,
             D: tl.constexpr, HALF: tl.constexpr, INTERLEAVED: tl.constexpr, PER_HEAD: tl.constexpr,
             ROTARY: tl.constexpr, LONG: tl.constexpr, POST: tl.constexpr, ROWS: tl.constexpr,
             PDL: tl.constexpr):  # fmt: skip
    """Do what `decode_gemv.gemv_qkv` does. Grid (B G,)."""
    row, first = place_of(ROWS)
    step = tl.num_programs(0) // ROWS
    N: tl.constexpr = (H + 2 * KV) * D
    index = first * BN + tl.arange(0, BN)
    a_rows, b_rows, place = pairs_of(index, H, KV, D, HALF, INTERLEAVED, PER_HEAD)
    a, a_scale, a_zero = _read(w_ptr, scale_ptr, zeros_ptr, a_rows, N, K, BK, GROUP, ZERO)
    b, b_scale, b_zero = _read(w_ptr, scale_ptr, zeros_ptr, b_rows, N, K, BK, GROUP, ZERO)
    slot = tl.load(slots_ptr + row).to(tl.int64)
    position = tl.load(lengths_ptr + slot)
    block = tl.load(table_ptr + slot * WIDTH + position // BLOCK)
    turn = table_row(position, long_ptr + slot, LONG)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    x, inverse, mean = _prepared(x_ptr, y_ptr, post_ptr, new_ptr, gain_ptr, row, first, K, eps, post_eps, factor, BK,
                                 GROUP, NORM, POST)  # fmt: skip
    for tile in range(first, tl.cdiv(N // 2, BN), step):
        index = tile * BN + tl.arange(0, BN)
        inside = index < N // 2
        a_rows, b_rows, place = pairs_of(index, H, KV, D, HALF, INTERLEAVED, PER_HEAD)
        pair, part, head, one, other = place
        next_a_rows, next_b_rows, _ahead = pairs_of(index + step * BN, H, KV, D, HALF, INTERLEAVED, PER_HEAD)
        next_a, next_a_scale, next_a_zero = _read(w_ptr, scale_ptr, zeros_ptr, next_a_rows, N, K, BK, GROUP, ZERO)
        next_b, next_b_scale, next_b_zero = _read(w_ptr, scale_ptr, zeros_ptr, next_b_rows, N, K, BK, GROUP, ZERO)
        _by_row, a_gains, a_bias = extras(a_rows, inside, scale_ptr, gains_ptr, bias_ptr, False, NORM, BIAS)
        _by_row, b_gains, b_bias = extras(b_rows, inside, scale_ptr, gains_ptr, bias_ptr, False, NORM, BIAS)
        cos, sin = rotation(turn, part, pair, inside, cos_ptr, sin_ptr, D, ROTARY)
        y = (sums(a, a_scale, a_zero, x, ZERO) - mean * a_gains) * inverse + a_bias
        z = (sums(b, b_scale, b_zero, x, ZERO) - mean * b_gains) * inverse + b_bias
        write_pair(y, z, cos, sin, one, other, row, block, position, part, head, inside, q_ptr, keys_ptr, values_ptr,
                   BLOCKS, H, KV, D, BLOCK)  # fmt: skip
        a, a_scale, a_zero = next_a, next_a_scale, next_a_zero
        b, b_scale, b_zero = next_b, next_b_scale, next_b_zero
