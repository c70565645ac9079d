"""Norms folded into products of single rows: inputs with their gain, and the statistics of what was read."""

# mypy: ignore-errors
# ruff: noqa: N803, SIM102, SIM108

import triton
import triton.language as tl


@triton.jit
def added(x_ptr, y_ptr, post_ptr, new_ptr, row, tile, K, eps, factor, BK: tl.constexpr, POST: tl.constexpr):
    """Return the source of a row's inputs: x, and with POST factor * norm(y); `new` gets their sum.

    Every program adds it for itself, and the first of the row writes it: a norm by itself would take a kernel that
    all others wait for. x stays as it was, for those that have yet to read it.
    """
    share = 0.0
    if POST:
        k = tl.arange(0, BK)
        squares = tl.zeros([BK], tl.float32)
        for start in range(0, K, BK):
            y = tl.load(y_ptr + row * K + start + k, mask=start + k < K, other=0.0).to(tl.float32)
            squares += y * y
        share = factor * tl.rsqrt(tl.sum(squares, 0) / K + eps)
    source = x_ptr + row * K, y_ptr + row * K, post_ptr, share
    if POST:
        if tile == 0:
            for start in range(0, K, BK):
                x, _ = inputs(source, post_ptr, start + k, K, "none", POST)
                tl.store(new_ptr + row * K + start + k, x, mask=start + k < K)
    return source


@triton.jit
def inputs(source, gain_ptr, k, K, NORM: tl.constexpr, POST: tl.constexpr):
    """Return (x, x times the norm's gain) at places k, float32; x is what `added` tells."""
    x_ptr, y_ptr, post_ptr, share = source
    x = tl.load(x_ptr + k, mask=k < K, other=0.0).to(tl.float32)
    if POST:
        y = tl.load(y_ptr + k, mask=k < K, other=0.0).to(tl.float32)
        x += share * y * tl.load(post_ptr + k, mask=k < K, other=0.0)
    if NORM == "none":
        scaled = x
    else:
        scaled = x * tl.load(gain_ptr + k, mask=k < K, other=0.0)
    return x, scaled


@triton.jit
def statistics(total, squares, K, eps, NORM: tl.constexpr):
    """Return (1 / deviation, mean) of x from its lane sums."""
    mean = 0.0
    if NORM == "layer":
        mean = tl.sum(total, 0) / K
    inverse = 1.0
    if NORM != "none":
        inverse = tl.rsqrt(tl.maximum(tl.sum(squares, 0) / K - mean * mean, 0.0) + eps)
    return inverse, mean
