"""Norms folded into products of single rows: inputs with their gain, and the statistics of what was read."""

# mypy: ignore-errors
# ruff: noqa: N803, SIM108

import triton
import triton.language as tl


@triton.jit
def inputs(x_ptr, gain_ptr, k, K, NORM: tl.constexpr):
    """Return (x, x times the norm's gain) at places k, float32."""
    x = tl.load(x_ptr + k, mask=k < K, other=0.0).to(tl.float32)
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
