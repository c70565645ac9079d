"""Sampler on the device: the next token of every row, the same as `scoring.decoder.sampler` picks."""

# mypy: ignore-errors
# ruff: noqa: N803, SIM108

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def _gumbel(seed, v, length):
    zero = v * 0
    bits, _, _, _ = tl.philox(seed, v, zero + length, zero, zero)
    uniform = ((bits.to(tl.uint32) >> 8).to(tl.float32) + 0.5) * 5.9604644775390625e-08
    return -tl.log(-tl.log(uniform))


@triton.jit
def scan(logits_ptr, scores_ptr, best_ptr, where_ptr, slots_ptr, lengths_ptr, seen_ptr, temperature_ptr, penalty_ptr,
         seed_ptr, forbidden_ptr, until_ptr, V, BV: tl.constexpr, CHUNKS: tl.constexpr, HELD: tl.constexpr,
         ADVANCE: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    """Adjust a chunk of a row's logits [B, V]; write its best candidate to best and where [B, CHUNKS].

    Sampled rows leave their adjusted scores, divided by the temperature, [B, V] for `choose`. Grid (B, CHUNKS).
    """
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    v = chunk * BV + tl.arange(0, BV)
    inside = v < V
    slot = tl.load(slots_ptr + row).to(tl.int64)
    length = tl.load(lengths_ptr + slot) + ADVANCE
    temperature = tl.load(temperature_ptr + slot)
    penalty = tl.load(penalty_ptr + slot)
    x = tl.load(logits_ptr + row * V + v, mask=inside, other=-float("inf")).to(tl.float32)
    if penalty != 1.0:
        seen = tl.load(seen_ptr + slot * V + v, mask=inside, other=0) != 0
        x = tl.where(seen, tl.where(x < 0, x * penalty, x / penalty), x)
    if length < tl.load(until_ptr + slot):
        for index in tl.static_range(HELD):
            x = tl.where(v == tl.load(forbidden_ptr + slot * HELD + index), -float("inf"), x)
    if temperature > 0:
        x = x / temperature
        tl.store(scores_ptr + row * V + v, x, mask=inside)
        x += _gumbel(tl.load(seed_ptr + slot), v, length)
        x = tl.where(inside, x, -float("inf"))
    tl.store(best_ptr + row * CHUNKS + chunk, tl.max(x, 0))
    tl.store(where_ptr + row * CHUNKS + chunk, chunk * BV + tl.argmax(x, 0))


@triton.jit
def _weights(scores_ptr, v, V, top):
    """Return exp(score - top), in (0, 1], as float32, whose bits have the same order; -1 past the vocabulary."""
    x = tl.load(scores_ptr + v, mask=v < V, other=0.0)
    return tl.where(v < V, tl.exp(x - top), -1.0)


@triton.jit
def _above(w, bits, MASS: tl.constexpr):
    """Return the number of weights with at least these bits, or with MASS their sum."""
    inside = w.to(tl.int32, bitcast=True) >= bits
    if MASS:
        worth = tl.where(inside, w, 0.0)
    else:
        worth = tl.where(inside, 1.0, 0.0)
    return tl.sum(worth, 0)


@triton.jit
def _reach(w, scores_ptr, bits, top, V, BV: tl.constexpr, ONCE: tl.constexpr, MASS: tl.constexpr):
    """Return `_above` of a row: of w, which with ONCE holds all of it, else tile by tile."""
    reached = 0.0
    if ONCE:
        reached = _above(w, bits, MASS)
    else:
        for start in range(0, V, BV):
            reached += _above(_weights(scores_ptr, start + tl.arange(0, BV), V, top), bits, MASS)
    return reached


@triton.jit
def _threshold(w, scores_ptr, low, target, top, V, BV: tl.constexpr, ONCE: tl.constexpr, MASS: tl.constexpr):
    """Return the bits of the largest weight such that the count or mass of weights from it up reaches the target."""
    high = tl.full([], 0x3F800001, tl.int32)  # one above the bits of 1.0, which nothing exceeds
    while high - low > 1:
        middle = low + (high - low) // 2
        reached = _reach(w, scores_ptr, middle, top, V, BV, ONCE, MASS)
        if reached >= target:
            low = middle
            if (not MASS) & (reached == target):
                high = low + 1  # exactly the k likeliest
        else:
            high = middle
    return low


@triton.jit
def _restricted(scores_ptr, top_k, top_p, seed, length, V, BV: tl.constexpr, BD: tl.constexpr,
                ONCE: tl.constexpr):  # fmt: skip
    """Draw once from the top-k and the nucleus of one row's scores; thresholds are found by bisection."""
    top = tl.full([], -float("inf"), tl.float32)
    for start in range(0, V, BD):
        v = start + tl.arange(0, BD)
        top = tl.maximum(top, tl.max(tl.load(scores_ptr + v, mask=v < V, other=-float("inf")), 0))
    w = tl.zeros([1], tl.float32)
    if ONCE:
        w = _weights(scores_ptr, tl.arange(0, BV), V, top)
    floor = tl.full([], 0, tl.int32)
    if (top_k > 0) & (top_k < V):
        floor = _threshold(w, scores_ptr, floor, top_k.to(tl.float32), top, V, BV, ONCE, False)
    if top_p < 1.0:
        mass = top_p * _reach(w, scores_ptr, floor, top, V, BV, ONCE, True)
        floor = _threshold(w, scores_ptr, floor, mass, top, V, BV, ONCE, True)
    best = tl.full([], -float("inf"), tl.float32)
    place = tl.full([], 0, tl.int32)
    for start in range(0, V, BD):
        v = start + tl.arange(0, BD)
        x = tl.load(scores_ptr + v, mask=v < V, other=0.0)
        kept = _weights(scores_ptr, v, V, top).to(tl.int32, bitcast=True) >= floor
        drawn = tl.where(kept, x + _gumbel(seed, v, length), -float("inf"))
        highest = tl.max(drawn, 0)
        if highest > best:
            best = highest
            place = (start + tl.argmax(drawn, 0)).to(tl.int32)
    return place


@triton.jit
def choose(scores_ptr, best_ptr, where_ptr, out_ptr, slots_ptr, lengths_ptr, tokens_ptr, seen_ptr, temperature_ptr,
           top_k_ptr, top_p_ptr, seed_ptr, V, SLOTS, BV: tl.constexpr, BD: tl.constexpr, ONCE: tl.constexpr,
           CHUNKS: tl.constexpr, CP: tl.constexpr, ADVANCE: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    """Choose a row's token: write out [B], the slot's next input and its seen tokens; advance the length. Grid (B,)."""
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + row).to(tl.int64)
    length = tl.load(lengths_ptr + slot)
    top_k = tl.load(top_k_ptr + slot)
    top_p = tl.load(top_p_ptr + slot)
    narrowed = ((top_k > 0) & (top_k < V)) | (top_p < 1.0)
    token = tl.full([], 0, tl.int32)
    if (tl.load(temperature_ptr + slot) > 0) & narrowed:
        seed = tl.load(seed_ptr + slot)
        token = _restricted(scores_ptr + row * V, top_k, top_p, seed, length + ADVANCE, V, BV, BD, ONCE)
    else:
        c = tl.arange(0, CP)
        best = tl.load(best_ptr + row * CHUNKS + c, mask=c < CHUNKS, other=-float("inf"))
        token = tl.load(where_ptr + row * CHUNKS + tl.argmax(best, 0))
    tl.store(out_ptr + row, token.to(tl.int64))
    tl.store(tokens_ptr + slot, token.to(tl.int64))
    if slot < SLOTS:
        tl.store(seen_ptr + slot * V + token, 1)
        if ADVANCE == 1:
            tl.store(lengths_ptr + slot, length + 1)
