"""Sum over ranks, residual and norm in one kernel: what a sliced decoder's layer has twice.

It saves a launch and the way of the sum through memory, and does not round the sum. Words and counts are
`scoring.kernels.all_reduce`'s, whose sums may come before and after.
"""

# mypy: ignore-errors
# ruff: noqa: N803

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from scoring.kernels.all_reduce import send, take
from scoring.kernels.decode_elementwise import normed


@triton.jit
def add_ranks_norm(x_ptr, y_ptr, bias_ptr, post_ptr, gain_ptr, shift_ptr, out_ptr, addresses_ptr, counts_ptr, E, eps,
                   post_eps, factor, SPINS, CAPACITY: tl.constexpr, BN: tl.constexpr, RANK: tl.constexpr,
                   WORLD: tl.constexpr, BE: tl.constexpr, BIAS: tl.constexpr, POST: tl.constexpr, NORM: tl.constexpr,
                   SEND: tl.constexpr, TAKE: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    """Compute x [B, E] float32 += factor (sum of y over WORLD ranks + bias), with POST normed first; out = norm(x).

    A row's numbers are whole blocks of BN, each with a count of its own. Grid (B,).
    """
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    e = tl.arange(0, BE)
    inside = e < E
    n = tl.program_id(0) * E + e
    number = tl.load(counts_ptr + n // BN, mask=inside, other=0) + 1
    half = (number & 1) * (WORLD * CAPACITY)
    own = tl.load(y_ptr + n, mask=inside, other=0.0).to(tl.float32)
    if SEND:
        send(own, addresses_ptr, n, inside, number, half, CAPACITY, RANK, WORLD)
    if TAKE:
        x = tl.load(x_ptr + n, mask=inside, other=0.0)  # on its way while the others' numbers are
        y = take(own, addresses_ptr, n, inside, number, half, SPINS, CAPACITY, RANK, WORLD, False)
        if BIAS:
            y += tl.load(bias_ptr + e, mask=inside, other=0.0).to(tl.float32)
        if POST:
            y = normed(y, inside, post_ptr, post_ptr, e, E, post_eps, "rms")
        x += factor * y
        tl.store(x_ptr + n, x, mask=inside)
        tl.store(out_ptr + n, normed(x, inside, gain_ptr, shift_ptr, e, E, eps, NORM), mask=inside)
        tl.store(counts_ptr + n // BN, number, mask=inside)  # every thread has read its own, or none had its words
