"""All-reduce over the GPUs of one host in one kernel, by words that carry their own arrival tag.

A word of 64 bits is a float32 and the number of the sum to which it belongs. A rank stores its words directly in every
other's memory and polls its own until all have the number of this sum: one trip over the link, no barrier. Sums
alternate between the two halves of an inbox. A half is free again by then: a rank whose words of the sum between have
arrived has finished the sum before it.
"""

# mypy: ignore-errors
# ruff: noqa: N803

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def _inbox(addresses_ptr, rank):
    return tl.multiple_of(tl.load(addresses_ptr + rank).to(tl.pointer_type(tl.int64)), 16)


@triton.jit
def _missing(word, number, inside):
    return tl.sum((((word >> 32).to(tl.int32) != number) & inside).to(tl.int32), 0)


@triton.jit
def add_ranks(x_ptr, addresses_ptr, counts_ptr, N, SPINS, CAPACITY: tl.constexpr, BN: tl.constexpr, RANK: tl.constexpr,
              WORLD: tl.constexpr, FIRST: tl.constexpr, SEND: tl.constexpr, TAKE: tl.constexpr,
              PDL: tl.constexpr):  # fmt: skip
    """All-reduce x [N] over WORLD ranks, in rank order in float32, or with FIRST broadcast rank 0's. Grid (N / BN).

    addresses [WORLD]: each rank's inbox [2, WORLD, CAPACITY], mapped on all. counts [CAPACITY / BN]: the number of
    sums in which each program has taken part. It polls SPINS times for late words, without end if that is negative.
    """
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    program = tl.program_id(0)
    n = program * BN + tl.arange(0, BN)
    inside = n < N
    number = tl.load(counts_ptr + program) + 1
    half = (number & 1) * (WORLD * CAPACITY)
    own = tl.load(x_ptr + n, mask=inside, other=0.0).to(tl.float32)
    if SEND:
        word = (own.to(tl.int32, bitcast=True).to(tl.int64) & 0xFFFFFFFF) | (number.to(tl.int64) << 32)
        for to in tl.static_range(WORLD):
            if to != RANK:
                place = _inbox(addresses_ptr, to) + half + RANK * CAPACITY + n
                tl.store(place, word, mask=inside, cache_modifier=".wt")
    if TAKE:
        total = tl.zeros([BN], tl.float32)
        for source in tl.static_range(WORLD):
            part = own
            if source != RANK:
                place = _inbox(addresses_ptr, RANK) + half + source * CAPACITY + n
                word = tl.load(place, mask=inside, other=0, volatile=True)
                missing = _missing(word, number, inside)
                spins = 0
                while (missing > 0) & (spins != SPINS):
                    word = tl.load(place, mask=inside, other=0, volatile=True)
                    missing = _missing(word, number, inside)
                    spins += 1
                part = (word & 0xFFFFFFFF).to(tl.int32).to(tl.float32, bitcast=True)
            if source == 0 or not FIRST:
                total += part
        tl.store(x_ptr + n, total.to(x_ptr.dtype.element_ty), mask=inside)
        tl.store(counts_ptr + program, number)
