"""Sampler in plain torch and numpy: the reference for the GPU's sampling kernel, and what a CPU runs.

The order is that of transformers: repetition penalty, forbidden tokens, mask, temperature, top-k, top-p, min-p. The
draw is the Gumbel-max trick over Philox-4x32-10 numbers, keyed by the slot's seed, the sequence's length and the token,
so that it depends on nothing else in the batch.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from scoring.decoder.kv_cache import KVCache
from scoring.errors import InvalidParameter

_ROUND_A, _ROUND_B = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_KEY_A, _KEY_B = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)


#: What is said where bans and bounds leave no token, and the remedy.
NO_TOKEN = (
    "No token is left that may come next: what the request allows, bans and binds the answer to excludes them all.",
    "Leave out one of allowed_token_ids, bad_words, logit_bias, and what binds the answer.",
)
#: Numbers to add to the logits of each row, by token; that of OTHERS goes to all tokens that are not named.
Added = Sequence[Mapping[int, float]]
OTHERS = -1
Words = np.ndarray[tuple[int], np.dtype[np.uint64]]


def philox(seed: int, count: int, length: int, tokens: Words | None = None) -> Words:
    """First words of Philox-4x32-10 for counters (token, length, 0, 0), as unsigned 32-bit values, [count].

    The tokens are 0..count-1 unless given.
    """
    c0 = np.arange(count, dtype=np.uint64) if tokens is None else tokens
    c1 = np.full(count, length, dtype=np.uint64)
    c2, c3 = np.zeros(count, dtype=np.uint64), np.zeros(count, dtype=np.uint64)
    k0, k1 = np.uint64(seed & 0xFFFFFFFF), np.uint64((seed >> 32) & 0xFFFFFFFF)
    for _ in range(10):
        product_a, product_b = _ROUND_A * c0, _ROUND_B * c2
        c0, c2 = (product_b >> np.uint64(32)) ^ c1 ^ k0, (product_a >> np.uint64(32)) ^ c3 ^ k1
        c1, c3 = product_b & _LOW, product_a & _LOW
        k0, k1 = (k0 + _KEY_A) & _LOW, (k1 + _KEY_B) & _LOW
    return c0


def gumbel(seed: int, count: int, length: int, tokens: Words | None = None) -> Tensor:
    """Gumbel noise [count], float32, for one draw, over all tokens or those given."""
    # 23 bits: with more, adding a half rounds the highest number up to 1, whose noise is infinite.
    uniform = ((philox(seed, count, length, tokens) >> np.uint64(9)).astype(np.float32) + 0.5) * np.float32(2**-23)
    return torch.from_numpy(-np.log(-np.log(uniform)))


def adjust(logits: Tensor, state: KVCache, slot: int, length: int, allowed: Tensor | None = None) -> Tensor:
    """Apply a slot's repetition penalty, forbidden and allowed tokens to its logits [vocabulary]; float32."""
    scores = logits.float().clone()
    penalty = float(state.penalty[slot])
    if penalty != 1.0:
        seen = state.seen[slot].bool()
        scores[seen] = torch.where(scores[seen] < 0, scores[seen] * penalty, scores[seen] / penalty)
    if length < int(state.forbidden_until[slot]):
        held = state.forbidden[slot]
        scores[held[held >= 0].long()] = -torch.inf
    return scores if allowed is None else scores.masked_fill_(~allowed, -torch.inf)


def add_to(logits: Tensor, added: Added) -> Tensor:
    """Add numbers by token to rows of logits [B, vocabulary], perhaps in place; return float32 where there are any."""
    if not any(added):
        return logits
    logits = logits.to(torch.float32, copy=True)
    for row, own in zip(logits, added, strict=True):
        named = {token: number for token, number in own.items() if token != OTHERS}
        tokens = torch.tensor(list(named), dtype=torch.int64, device=logits.device)
        if OTHERS in own:
            kept = row[tokens]
            row += own[OTHERS]
            row[tokens] = kept
        row.index_add_(0, tokens, torch.tensor(list(named.values()), device=logits.device))
    return logits


def restrict(scores: Tensor, temperature: float, top_k: int, top_p: float, min_p: float = 0.0) -> Tensor:
    """Divide scores by the temperature, and set them to -inf outside top-k and the nucleus; ties stay in.

    So are those of tokens less likely than `min_p` times the likeliest.
    """
    scores = scores / temperature
    if 0 < top_k < scores.shape[0]:
        scores = scores.masked_fill(scores < scores.topk(top_k).values[-1], -torch.inf)
    if top_p < 1.0:
        ordered, _ = scores.sort(descending=True)
        before = torch.softmax(ordered, 0).cumsum(0) - torch.softmax(ordered, 0)  # mass of likelier tokens
        kept = int((before < top_p).sum().clamp(min=1))
        scores = scores.masked_fill(scores < ordered[kept - 1], -torch.inf)
    if min_p > 0.0:
        chances = torch.softmax(scores, 0)
        scores = scores.masked_fill(chances < min_p * chances.max(), -torch.inf)
    return scores


def pick(logits: Tensor, state: KVCache, slot: int, allowed: Tensor | None = None, length: int | None = None) -> int:
    """Sample the token after a slot's first `length` (default: all that it has) from its logits [vocabulary].

    Among those `allowed` [vocabulary] if given.
    """
    length = int(state.lengths[slot]) if length is None else length
    scores = adjust(logits, state, slot, length, allowed).cpu()
    temperature = float(state.temperature[slot])
    if temperature == 0.0:
        return int(scores.argmax())
    limits = int(state.top_k[slot]), float(state.top_p[slot]), float(state.min_p[slot])
    scores = restrict(scores, temperature, *limits)
    open_to = (scores > -torch.inf).nonzero()[:, 0]  # usually few: only they need random numbers
    if not len(open_to):
        raise InvalidParameter(*NO_TOKEN)
    words = open_to.numpy().astype(np.uint64)
    noise = gumbel(int(state.seed[slot]), len(words), length, words)
    return int(open_to[(scores[open_to] + noise).argmax()])


def pick_all(
    logits: Tensor, state: KVCache, slots: Tensor, masks: Tensor | None = None, lengths: Tensor | None = None
) -> list[int]:
    """Sample the next token of each of slots [B] from logits [B, vocabulary]; plain greedy ones in one operation.

    Within masks [B, words] int32 if given: bits of the tokens allowed. After so many of each slot's tokens, lengths
    [B]; without them, after all that it has.
    """
    lengths = state.lengths[slots] if lengths is None else lengths
    allowed = None if masks is None else unpack(masks, logits.shape[1]).to(logits.device)
    plain = (state.temperature[slots] == 0) & (state.penalty[slots] == 1)
    scores = _open(logits, state, slots, lengths, allowed)
    likeliest: list[int] = scores.argmax(-1).tolist()
    return [
        token if simple else pick(logits[row], state, slot, None if allowed is None else allowed[row], length)
        for row, (slot, token, simple, length) in enumerate(
            zip(slots.tolist(), likeliest, plain.tolist(), lengths.tolist(), strict=True)
        )
    ]


def _open(logits: Tensor, state: KVCache, slots: Tensor, lengths: Tensor, allowed: Tensor | None) -> Tensor:
    """Logits [B, vocabulary] of which forbidden tokens, and those that are not allowed, are -inf."""
    held = (state.forbidden[slots] >= 0) & (lengths < state.forbidden_until[slots])[:, None]
    scores = logits if allowed is None else torch.where(allowed, logits, -torch.inf)
    if not bool(held.any()):
        return scores
    rows, places = held.nonzero(as_tuple=True)
    tokens = state.forbidden[slots][rows, places].long()
    return scores.index_put((rows, tokens), scores.new_tensor(-torch.inf))


def unpack(masks: Tensor, count: int) -> Tensor:
    """Bits of masks [B, words] int32, the lowest first, as bool [B, count]."""
    bits = np.unpackbits(masks.numpy().view(np.uint8), axis=1, count=count, bitorder="little")
    return torch.from_numpy(bits).bool()
