"""Sampler on the device: the next token of every row, the same as `scoring.decoder.sampler` picks.

The scan of a row's logits leaves the highest score and the mass of every block of SB tokens. From these alone follows a
weight that top-k or the nucleus cannot fall below, and usually a few hundred tokens of a vocabulary of 150,000 have
it: they are gathered once, and thresholds are found among them. Where they are too many, thresholds are found by
reading the whole row as often as it takes.
"""

# mypy: ignore-errors
# ruff: noqa: N803, N806

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

_LIGHTEST = tl.constexpr(0x00800000)  # bits of the least normal number


@triton.jit
def _gumbel(seed, v, length):
    zero = v * 0
    bits, _, _, _ = tl.philox(seed, v, zero + length, zero, zero)
    # 23 bits: with more, adding a half rounds the highest number up to 1, whose noise is infinite.
    uniform = ((bits.to(tl.uint32) >> 9).to(tl.float32) + 0.5) * 1.1920928955078125e-07
    return -tl.log(-tl.log(uniform))


@triton.jit
def scan(logits_ptr, scores_ptr, best_ptr, where_ptr, peaks_ptr, masses_ptr, slots_ptr, lengths_ptr, seen_ptr,
         temperature_ptr, penalty_ptr, seed_ptr, forbidden_ptr, until_ptr, constrained_ptr, masks_ptr, masked_ptr, V,
         WORDS, BV: tl.constexpr, SB: tl.constexpr, CHUNKS: tl.constexpr, HELD: tl.constexpr, MASKED: tl.constexpr,
         ADVANCE: tl.constexpr, OWN: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    """Adjust a chunk of a row's logits [B, V]; write its best candidate to best and where [B, CHUNKS].

    Lengths are by slot, with OWN by row. Sampled rows leave for `choose` their adjusted scores, divided by the
    temperature, [B, V], and of each block of SB the highest score and the mass relative to it, peaks and masses [B,
    CHUNKS * BV / SB]. With MASKED, tokens without a bit in the row's of masks [masks, WORDS] int32 are left out; masked
    [B] int32 tells which, -1 for none. With ADVANCE constrained slots without one are passed over. Grid (B, CHUNKS).
    """
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    v = chunk * BV + tl.arange(0, BV)
    inside = v < V
    slot = tl.load(slots_ptr + row).to(tl.int64)
    mask = tl.full([], -1, tl.int32)
    if MASKED:
        mask = tl.load(masked_ptr + row)
    if (ADVANCE == 1) & (not OWN) & (mask < 0) & (tl.load(constrained_ptr + slot) != 0):
        return
    length = tl.load(lengths_ptr + (row if OWN else slot)) + ADVANCE
    temperature = tl.load(temperature_ptr + slot)
    penalty = tl.load(penalty_ptr + slot)
    x = tl.load(logits_ptr + row * V + v, mask=inside, other=-float("inf")).to(tl.float32)
    if penalty != 1.0:
        seen = tl.load(seen_ptr + slot * V + v, mask=inside, other=0) != 0
        x = tl.where(seen, tl.where(x < 0, x * penalty, x / penalty), x)
    if length < tl.load(until_ptr + slot):
        for index in tl.static_range(HELD):
            x = tl.where(v == tl.load(forbidden_ptr + slot * HELD + index), -float("inf"), x)
    if MASKED:
        word = tl.load(masks_ptr + mask.to(tl.int64) * WORDS + v // 32, mask=inside & (mask >= 0), other=-1)
        x = tl.where(((word >> (v % 32)) & 1) != 0, x, -float("inf"))
    if temperature > 0:
        x = x / temperature
        tl.store(scores_ptr + row * V + v, x, mask=inside)
        blocks = tl.reshape(tl.where(inside, x, -float("inf")), [BV // SB, SB])
        peak = tl.max(blocks, 1)
        mass = tl.sum(tl.exp(blocks - tl.where(peak > -float("inf"), peak, 0.0)[:, None]), 1)
        place = (row * CHUNKS + chunk) * (BV // SB) + tl.arange(0, BV // SB)
        tl.store(peaks_ptr + place, peak)
        tl.store(masses_ptr + place, mass)
        x += _gumbel(tl.load(seed_ptr + slot), v, length)
        x = tl.where(inside, x, -float("inf"))
    tl.store(best_ptr + row * CHUNKS + chunk, tl.max(x, 0))
    tl.store(where_ptr + row * CHUNKS + chunk, chunk * BV + tl.argmax(x, 0))


@triton.jit
def _bits(w):
    """Bits of weights, which for positive float32 numbers have the numbers' order."""
    return w.to(tl.int32, bitcast=True)


@triton.jit
def _weights(scores_ptr, v, V, top):
    """Return exp(score - top), in [0, 1], as float32; -1 past the vocabulary."""
    x = tl.load(scores_ptr + v, mask=v < V, other=0.0)
    return tl.where(v < V, tl.exp(x - top), -1.0)


@triton.jit
def _worth(w, bits, MASS: tl.constexpr):
    """Return one for each weight with at least these bits, or with MASS the weight; zeros for the others."""
    return tl.where(_bits(w) >= bits, w if MASS else 1.0, 0.0)


@triton.jit
def _reach(w, scores_ptr, bits, top, V, BV: tl.constexpr, GATHERED: tl.constexpr, MASS: tl.constexpr):
    """Return the number of weights with at least these bits, or with MASS their sum; of w, or of a whole row."""
    if GATHERED:
        worth = _worth(w, bits, MASS)
    else:
        worth = tl.zeros([BV], tl.float32)  # added up at the end alone, for which warps wait for each other
        for start in range(0, V, BV):
            worth += _worth(_weights(scores_ptr, start + tl.arange(0, BV), V, top), bits, MASS)
    return tl.sum(worth, 0)


@triton.jit
def _threshold(w, scores_ptr, low, target, top, V, BV: tl.constexpr, GATHERED: tl.constexpr,
               MASS: tl.constexpr):  # fmt: skip
    """Return the bits of the largest weight such that the count or mass of weights from it up reaches the target."""
    high = tl.full([], 0x3F800001, tl.int32)  # one above the bits of 1.0, which nothing exceeds
    while high - low > 1:
        middle = low + (high - low) // 2
        reached = _reach(w, scores_ptr, middle, top, V, BV, GATHERED, MASS)
        if reached >= target:
            low = middle
            if (not MASS) & (reached == target):
                high = low + 1  # exactly the k likeliest
        else:
            high = middle
    return low


@triton.jit
def _nucleus_bound(peaks, masses, top_p, SB: tl.constexpr):
    """Return the bits of a weight that the nucleus cannot fall below, from blocks' peaks as weights, and their masses.

    Tokens below a weight t have at most the mass of the blocks that lie below it, and of each other block what it has
    beside its peak, or SB - 1 times t. While that is less than 1 - p of all, tokens from t up have p.
    """
    spare = (1.0 - top_p) * tl.sum(masses, 0) * 0.999  # sums of float32 round
    low = tl.full([], 0, tl.int32)
    high = tl.full([], 0x3F800001, tl.int32)
    while high - low > 1:
        middle = low + (high - low) // 2
        t = middle.to(tl.float32, bitcast=True)
        below = tl.where(peaks < t, masses, tl.minimum(masses - tl.maximum(peaks, 0.0), (SB - 1) * t))
        if tl.sum(below, 0) <= spare:
            low = middle
        else:
            high = middle
    return low


@triton.jit
def _gather(scores_ptr, peaks, least, near_ptr, kept_ptr, places_ptr, top, V, SB: tl.constexpr, BP: tl.constexpr,
            TB: tl.constexpr, MOST: tl.constexpr):  # fmt: skip
    """Gather a row's tokens of at least these bits, in order: scores to kept, tokens to places; return their number.

    Only blocks whose peak has them are read, TB at a time. Nothing is written from the MOST-th token on.
    """
    near = (_bits(peaks) >= least).to(tl.int32)
    blocks = tl.sum(near, 0)
    tl.store(near_ptr + tl.cumsum(near, 0) - 1, tl.arange(0, BP), mask=near > 0)
    tl.debug_barrier()
    count = tl.full([], 0, tl.int32)
    i = tl.arange(0, TB * SB)
    for start in range(0, blocks, TB):
        shown = start + i // SB < blocks
        v = tl.load(near_ptr + start + i // SB, mask=shown, other=0) * SB + i % SB
        shown = shown & (v < V)
        x = tl.load(scores_ptr + v, mask=shown, other=-float("inf"))
        taken = (shown & (_bits(tl.exp(x - top)) >= least)).to(tl.int32)
        place = count + tl.cumsum(taken, 0) - 1
        fits = (taken > 0) & (place < MOST)
        tl.store(kept_ptr + place, x, mask=fits)
        tl.store(places_ptr + place, v, mask=fits)
        count += tl.sum(taken, 0)
    tl.debug_barrier()
    return count


@triton.jit
def _floor(w, scores_ptr, top_k, top_p, min_p, total, top, V, BV: tl.constexpr, GATHERED: tl.constexpr):
    """Return the bits of the least weight in top-k, the nucleus and min-p; `total` is the mass of all tokens."""
    floor = tl.full([], 0, tl.int32)
    if (top_k > 0) & (top_k < V):
        floor = _threshold(w, scores_ptr, floor, top_k.to(tl.float32), top, V, BV, GATHERED, False)
        total = _reach(w, scores_ptr, floor, top, V, BV, GATHERED, True)
    if top_p < 1.0:
        floor = _threshold(w, scores_ptr, floor, top_p * total, top, V, BV, GATHERED, True)
    return tl.maximum(floor, _bits(min_p))


@triton.jit
def _drawn(x, v, floor, top, seed, length):
    """Return scores with their noise, -inf of tokens below the floor."""
    kept = _bits(tl.exp(x - top)) >= floor
    return tl.where(kept, x + _gumbel(seed, v, length), -float("inf"))


@triton.jit
def _restricted(scores_ptr, peaks_ptr, masses_ptr, near_ptr, kept_ptr, places_ptr, top_k, top_p, min_p, seed,
                length, V, BLOCKS, SB: tl.constexpr, BP: tl.constexpr, TB: tl.constexpr,
                MOST: tl.constexpr):  # fmt: skip
    """Draw once from what top-k, the nucleus and min-p leave of a row's scores; thresholds are found by bisection."""
    BV: tl.constexpr = 2 * TB * SB
    block = tl.arange(0, BP)
    peaks = tl.load(peaks_ptr + block, mask=block < BLOCKS, other=-float("inf"))
    top = tl.max(peaks, 0)
    peaks = tl.where(block < BLOCKS, tl.exp(peaks - top), -1.0)
    masses = peaks * tl.load(masses_ptr + block, mask=block < BLOCKS, other=0.0)
    total = tl.sum(masses, 0)
    least = tl.full([], 0, tl.int32)
    if (top_k > 0) & (top_k < V):
        # Of the k-th highest block the peak alone is k-th or higher.
        least = _threshold(peaks, scores_ptr, least, top_k.to(tl.float32), top, V, BV, True, False)
    else:
        least = tl.maximum(_nucleus_bound(peaks, masses, top_p, SB), _bits(min_p))
    # A mask can leave less than k blocks with any token; those without weight are never drawn.
    least = tl.maximum(least, _LIGHTEST)
    count = _gather(scores_ptr, peaks, least, near_ptr, kept_ptr, places_ptr, top, V, SB, BP, TB, MOST)
    place = tl.full([], 0, tl.int32)
    if count <= MOST:
        i = tl.arange(0, MOST)
        x = tl.load(kept_ptr + i, mask=i < count, other=-float("inf"))
        v = tl.load(places_ptr + i, mask=i < count, other=0)
        w = tl.where(i < count, tl.exp(x - top), -1.0)
        floor = _floor(w, scores_ptr, top_k, top_p, min_p, total, top, V, BV, True)
        place = tl.load(places_ptr + tl.argmax(_drawn(x, v, floor, top, seed, length), 0))
    else:
        floor = _floor(peaks, scores_ptr, top_k, top_p, min_p, total, top, V, BV, False)
        best, places = tl.full([BV], -float("inf"), tl.float32), tl.zeros([BV], tl.int32)
        for start in range(0, V, BV):
            v = start + tl.arange(0, BV)
            drawn = _drawn(tl.load(scores_ptr + v, mask=v < V, other=-float("inf")), v, floor, top, seed, length)
            places = tl.where(drawn > best, v, places)
            best = tl.maximum(best, drawn)
        place = tl.sum(tl.where(tl.arange(0, BV) == tl.argmax(best, 0), places, 0), 0)
    return place


@triton.jit
def choose(scores_ptr, best_ptr, where_ptr, peaks_ptr, masses_ptr, near_ptr, kept_ptr, places_ptr, out_ptr, slots_ptr,
           lengths_ptr, tokens_ptr, seen_ptr, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, seed_ptr,
           constrained_ptr, masked_ptr, V, SLOTS, BLOCKS, SB: tl.constexpr, BP: tl.constexpr, TB: tl.constexpr,
           MOST: tl.constexpr, CHUNKS: tl.constexpr, CP: tl.constexpr, MASKED: tl.constexpr, ADVANCE: tl.constexpr,
           OWN: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    """Choose a row's token: write out [B], the slot's next input and its seen tokens; advance the length. Grid (B,).

    With ADVANCE, the token of a constrained slot without a mask is 0 for now, and is not counted as seen. With OWN,
    rows have lengths of their own, and only out is written.
    """
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + row).to(tl.int64)
    length = tl.load(lengths_ptr + (row if OWN else slot))
    top_k = tl.load(top_k_ptr + slot)
    top_p = tl.load(top_p_ptr + slot)
    min_p = tl.load(min_p_ptr + slot)
    narrowed = ((top_k > 0) & (top_k < V)) | (top_p < 1.0) | (min_p > 0)
    token = tl.full([], 0, tl.int32)
    left = (ADVANCE == 1) & (not OWN) & (tl.load(constrained_ptr + slot) != 0)
    if MASKED:
        left = left & (tl.load(masked_ptr + row) < 0)
    if left:
        token = tl.full([], 0, tl.int32)
    elif (tl.load(temperature_ptr + slot) > 0) & narrowed:
        seed = tl.load(seed_ptr + slot)
        token = _restricted(scores_ptr + row * V, peaks_ptr + row * BLOCKS, masses_ptr + row * BLOCKS,
                            near_ptr + row * BLOCKS, kept_ptr + row * MOST, places_ptr + row * MOST, top_k, top_p,
                            min_p, seed, length + ADVANCE, V, BLOCKS, SB, BP, TB, MOST)  # fmt: skip
    else:
        c = tl.arange(0, CP)
        best = tl.load(best_ptr + row * CHUNKS + c, mask=c < CHUNKS, other=-float("inf"))
        token = tl.load(where_ptr + row * CHUNKS + tl.argmax(best, 0))
    tl.store(out_ptr + row, token.to(tl.int64))
    if not OWN:
        tl.store(tokens_ptr + slot, token.to(tl.int64))
        if slot < SLOTS:
            tl.store(seen_ptr + slot * V + token, 1, mask=not left)
            if ADVANCE == 1:
                tl.store(lengths_ptr + slot, length + 1)


@triton.jit
def accept(out_ptr, fed_ptr, slots_ptr, positions_ptr, firsts_ptr, tokens_ptr, seen_ptr, lengths_ptr, ROWS, V, SLOTS,
           BR: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    """Keep what was picked [B] as far as it was fed to the next row: seen tokens, next inputs and lengths. Grid (B,).

    Rows from firsts on are of one slot, at consecutive positions. What a row picked counts if each row before it was
    followed by what it picked; the last such row tells the slot's next input and its length.
    """
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    row = tl.program_id(0)
    first = tl.load(firsts_ptr + row)
    slot = tl.load(slots_ptr + row).to(tl.int64)
    i = tl.arange(0, BR)
    before = i < row - first
    picked = tl.load(out_ptr + first + i, mask=before, other=0)
    fed = tl.load(fed_ptr + first + 1 + i, mask=before, other=0).to(tl.int64)
    wrong = tl.sum((before & (picked != fed)).to(tl.int32), 0)
    if (wrong == 0) & (slot < SLOTS):
        token = tl.load(out_ptr + row)
        tl.store(seen_ptr + slot * V + token, 1)
        follows = row + 1 < ROWS
        other = tl.load(firsts_ptr + row + 1, mask=follows, other=-1)
        after = tl.load(fed_ptr + row + 1, mask=follows, other=-1).to(tl.int64)
        if (other != first) | (after != token):
            tl.store(tokens_ptr + slot, token)
            tl.store(lengths_ptr + slot, tl.load(positions_ptr + row) + 1)
