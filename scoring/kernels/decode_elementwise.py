"""Kernels between the products: embedding, residual and norm, rotation and cache write, activation."""

# mypy: ignore-errors
# ruff: noqa: N803, SIM108

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from scoring.kernels.decode_gemv import activation, pair_places, rotation, split_heads, table_row, write_pair


@triton.jit
def _normed(x, inside, gain_ptr, shift_ptr, e, E, eps, NORM: tl.constexpr):
    """Normalise x [BE] in float32."""
    if NORM != "none":
        mean = 0.0
        if NORM == "layer":
            mean = tl.sum(x, 0) / E
        centred = tl.where(inside, x - mean, 0.0)
        x = centred * tl.rsqrt(tl.sum(centred * centred, 0) / E + eps)
        x *= tl.load(gain_ptr + e, mask=inside, other=0.0)
        if NORM == "layer":
            x += tl.load(shift_ptr + e, mask=inside, other=0.0)
    return x


@triton.jit
def embed(table_ptr, positions_ptr, gain_ptr, shift_ptr, x_ptr, slots_ptr, tokens_ptr, lengths_ptr, scale, offset, E,
          eps, BE: tl.constexpr, LEARNED: tl.constexpr, NORM: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    """Compute x [B, E] float32 of each row's next token: embedding, scale, learned position, norm. Grid (B,)."""
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    row = tl.program_id(0).to(tl.int64)
    e = tl.arange(0, BE)
    inside = e < E
    slot = tl.load(slots_ptr + row)
    token = tl.load(tokens_ptr + slot).to(tl.int64)
    x = tl.load(table_ptr + token * E + e, mask=inside, other=0.0).to(tl.float32) * scale
    if LEARNED:
        position = tl.load(lengths_ptr + slot).to(tl.int64) + offset
        x += tl.load(positions_ptr + position * E + e, mask=inside, other=0.0).to(tl.float32)
    x = _normed(x, inside, gain_ptr, shift_ptr, e, E, eps, NORM)
    tl.store(x_ptr + row * E + e, x, mask=inside)


@triton.jit
def add_norm(x_ptr, y_ptr, bias_ptr, post_ptr, gain_ptr, shift_ptr, out_ptr, E, eps, post_eps, factor,
             BE: tl.constexpr, ADD: tl.constexpr, BIAS: tl.constexpr, POST: tl.constexpr, NORM: tl.constexpr,
             PDL: tl.constexpr):  # fmt: skip
    """Compute x [B, E] float32 += factor (y + bias) with ADD, with POST RMS-normed first; out = norm(x) unless "skip".

    Grid (B,).
    """
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    row = tl.program_id(0).to(tl.int64)
    e = tl.arange(0, BE)
    inside = e < E
    x = tl.load(x_ptr + row * E + e, mask=inside, other=0.0)
    if ADD:
        y = tl.load(y_ptr + row * E + e, mask=inside, other=0.0).to(tl.float32)
        if BIAS:
            y += tl.load(bias_ptr + e, mask=inside, other=0.0).to(tl.float32)
        if POST:
            y = _normed(y, inside, post_ptr, post_ptr, e, E, post_eps, "rms")
        x += factor * y
        tl.store(x_ptr + row * E + e, x, mask=inside)
    if NORM != "skip":
        tl.store(out_ptr + row * E + e, _normed(x, inside, gain_ptr, shift_ptr, e, E, eps, NORM), mask=inside)


@triton.jit
def scatter_qkv(qkv_ptr, bias_ptr, q_ptr, keys_ptr, values_ptr, cos_ptr, sin_ptr, slots_ptr, lengths_ptr,
                table_ptr, long_ptr, WIDTH, BLOCKS, BN: tl.constexpr, BLOCK: tl.constexpr,
                BIAS: tl.constexpr, OWN: tl.constexpr, H: tl.constexpr, KV: tl.constexpr,
                D: tl.constexpr, HALF: tl.constexpr, INTERLEAVED: tl.constexpr, PER_HEAD: tl.constexpr,
                ROTARY: tl.constexpr, LONG: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    """Add bias to the fused product [B, (H + 2 KV) D] and rotate it; write queries to q, keys and values to the cache.

    A row's position is its slot's length, or with OWN its own entry of lengths. Grid (B, pairs / BN).
    """
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    row = tl.program_id(0).to(tl.int64)
    index = tl.program_id(1) * BN + tl.arange(0, BN)
    pair = index % (D // 2)
    part, head = split_heads(index // (D // 2), H, KV)
    inside = index < (H + 2 * KV) * (D // 2)
    first, second = pair_places(pair, D, HALF, INTERLEAVED)
    if PER_HEAD:
        base = (head * 3 + part) * D
    else:
        base = (index // (D // 2)) * D
    source = qkv_ptr + row * (H + 2 * KV) * D + base
    a = tl.load(source + first, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(source + second, mask=inside, other=0.0).to(tl.float32)
    if BIAS:
        a += tl.load(bias_ptr + base + first, mask=inside, other=0.0).to(tl.float32)
        b += tl.load(bias_ptr + base + second, mask=inside, other=0.0).to(tl.float32)
    slot = tl.load(slots_ptr + row).to(tl.int64)
    if OWN:
        position = tl.load(lengths_ptr + row)
    else:
        position = tl.load(lengths_ptr + slot)
    block = tl.load(table_ptr + slot * WIDTH + position // BLOCK)
    cos, sin = rotation(table_row(position, long_ptr + slot, LONG), part, pair, inside, cos_ptr, sin_ptr, D, ROTARY)
    write_pair(a, b, cos, sin, first, second, row, block, position, part, head, inside, q_ptr, keys_ptr, values_ptr,
               BLOCKS, H, KV, D, BLOCK)  # fmt: skip


@triton.jit
def activate(x_ptr, bias_ptr, out_ptr, N, BN: tl.constexpr, ACT: tl.constexpr, GATED: tl.constexpr,
             BIAS: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    """Compute out [B, N] = act(x + bias), or act(gate + bias) * (up + bias) of x [B, 2N]. Grid (B, N / BN)."""
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    row = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    inside = n < N
    source = x_ptr + row * N * (2 if GATED else 1)
    x = tl.load(source + n, mask=inside, other=0.0).to(tl.float32)
    if BIAS:
        x += tl.load(bias_ptr + n, mask=inside, other=0.0).to(tl.float32)
    x = activation(x, ACT)
    if GATED:
        up = tl.load(source + N + n, mask=inside, other=0.0).to(tl.float32)
        if BIAS:
            up += tl.load(bias_ptr + N + n, mask=inside, other=0.0).to(tl.float32)
        x *= up
    tl.store(out_ptr + row * N + n, x, mask=inside)
