"""Attention over a decoder's cache in plain torch: writes keys and values of new tokens, and reads the live ones."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from scoring.decoder.block_pool import BLOCK, blocks_of
from scoring.decoder.kv_cache import FP8, KVCache
from scoring.decoder.model import Attention, CachedModel


class PromptAttention:
    """Attention of the layers in one prefill of parts (slot, start position, number of tokens)."""

    def __init__(self, model: CachedModel, state: KVCache, parts: Sequence[tuple[int, int, int]]) -> None:
        self.model = model
        self.state = state
        self.parts = parts
        device = model.device
        self.positions = torch.cat([torch.arange(at, at + count, device=device) for _, at, count in parts])
        self._counts = [count for _, _, count in parts]
        slots = torch.tensor([slot for slot, _, count in parts for _ in range(count)], device=device)
        self.long = state.long[slots]
        split = zip(parts, torch.split(self.positions, self._counts), strict=True)
        self._places = {slot: places(state, slot, where) for (slot, _, _), where in split}
        self._masks: dict[tuple[int, int], Tensor | None] = {}

    def attend(self, index: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of a layer for q [T, heads, D], k and v [T, kv_heads, D], part after part: [T, heads * D]."""
        layer = self.model.layers[index].attention
        out = []
        split = zip(*(torch.split(whole, self._counts) for whole in (q, k, v, self.positions)), strict=True)
        for (slot, start, count), (own_q, own_k, own_v, where) in zip(self.parts, split, strict=True):
            end = start + count
            keys, values = _updated(self.state, index, self._places[slot], own_k, own_v, slice(slot, slot + 1), end)
            if (slot, layer.window) not in self._masks:
                self._masks[slot, layer.window] = _mask(self.model, where[None], end, layer.window)
            seen = attention(layer, own_q.transpose(0, 1)[None], keys, values, self._masks[slot, layer.window])
            out.append(seen[0].transpose(0, 1).flatten(1))
        return torch.cat(out)


class StepAttention:
    """Attention of the layers in one step of slots [B]; `longest` bounds their lengths, the new token included."""

    def __init__(self, model: CachedModel, state: KVCache, slots: Tensor, longest: int) -> None:
        self.model = model
        self.state = state
        self.positions = state.lengths[slots].long()
        self.long = state.long[slots]
        self._longest = longest
        self._places = places(state, slots, self.positions)
        self._rows = _rows(slots)
        self._masks: dict[tuple[int, int], Tensor] = {}

    def attend(self, index: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of a layer for q [B, heads, D], k and v [B, kv_heads, D]: [B, heads * D]."""
        layer = self.model.layers[index].attention
        keys, values = _updated(self.state, index, self._places, k, v, self._rows, self._longest)
        # Queries that share keys are rows of one product, so that keys are not repeated.
        shared = q.view(len(q), k.shape[1], -1, q.shape[-1])
        kind = layer.window, shared.shape[2]
        if kind not in self._masks:
            self._masks[kind] = _step_mask(self.model, self.positions, self._longest, *kind)
        return attention(layer, shared, keys, values, self._masks[kind]).flatten(1)


def places(state: KVCache, slots: Tensor | int, positions: Tensor) -> Tensor:
    """Places of tokens [T] among those of all blocks, of one slot or of slots [T], in each group of layers: [G, T]."""
    return state.table[:, slots, positions // BLOCK].long() * BLOCK + positions % BLOCK


def write(cache: Tensor, places: Tensor, new: Tensor) -> None:
    """Write keys or values [T, KV, D] of tokens at places [T] into a layer's cache [KV, blocks, BLOCK, D]."""
    if cache.dtype == FP8:
        most = torch.finfo(FP8).max  # beyond it there is no number to keep
        cache, new = cache.view(torch.uint8), new.float().clamp(-most, most).to(FP8).view(torch.uint8)
    cache.view(len(cache), -1, cache.shape[-1]).index_copy_(1, places, new.transpose(0, 1))


def _updated(
    state: KVCache, index: int, at: Tensor, k: Tensor, v: Tensor, rows: Tensor | slice, length: int
) -> tuple[Tensor, Tensor]:
    """Write a layer's keys and values [T, KV, D] of tokens at places [G, T], if it keeps its own.

    Returns those of the first tokens of slots, [B, KV, length, D]: views if blocks are in place, and of k's type.
    """
    cache, own = state.layer(index), at[state.groups.places[index][0]]
    if index not in state.groups.readers:
        write(cache.keys, own, k)
        write(cache.values, own, v)
    if state.in_place:
        keys, values = (each[:, rows, :length].transpose(0, 1) for each in state.in_order(index))
    else:
        blocks = cache.table[rows, : blocks_of(length)].long()
        keys, values = (
            each[:, blocks].transpose(0, 1).flatten(2, 3)[:, :, :length] for each in (cache.keys, cache.values)
        )
    return keys.to(k.dtype), values.to(k.dtype)


def _mask(model: CachedModel, positions: Tensor, length: int, window: int) -> Tensor | None:
    """Additive mask [B or 1, 1 or heads, T, length] in the model's dtype, or None for a plain causal prefill."""
    rows = positions.shape[1]
    if window == 0 and model.alibi is None and rows == length:
        return None
    keys = torch.arange(length, device=positions.device)
    distance = positions[:, None, :, None] - keys
    hidden = distance < 0
    if window:
        hidden = hidden | (distance >= window)
    bias = torch.zeros(distance.shape, device=distance.device)
    if model.alibi is not None:
        bias = -model.alibi[None, :, None, None] * distance
    return bias.masked_fill(hidden, -math.inf).to(model.dtype)


def _step_mask(model: CachedModel, positions: Tensor, length: int, window: int, shared: int) -> Tensor:
    """Mask, added: [B, 1 or kv_heads, queries `shared` by a key head, length], for one query at each position [B]."""
    mask = _mask(model, positions[:, None], length, window)
    assert mask is not None
    if mask.shape[1] == 1:
        return mask.expand(-1, -1, shared, -1)
    return mask.view(len(mask), model.kv_heads, -1, length)


def _rows(slots: Tensor) -> Tensor | slice:
    """Consecutive slots as a slice, which reads the cache in place; other slots unchanged."""
    numbers = slots.tolist() if slots.device.type == "cpu" else []
    if numbers and numbers == list(range(numbers[0], numbers[0] + len(numbers))):
        return slice(numbers[0], numbers[0] + len(numbers))
    return slots


def attention(layer: Attention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of q [B, H, T, D] over k and v [B, KV, L, D], causal without a mask: [B, H, T, D]."""
    grouped = q.shape[1] != k.shape[1]
    if not layer.cap and layer.sinks is None:
        return functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=layer.scale, enable_gqa=grouped
        )
    if grouped:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = q @ k.transpose(-1, -2) * (layer.scale / (layer.cap or 1.0))
    if layer.cap:
        scores = layer.cap * torch.tanh(scores)
    if mask is None:
        mask = torch.full(scores.shape[-2:], -math.inf, dtype=q.dtype, device=q.device).triu(1)
    return _weights(layer, (scores + mask).float()).to(q.dtype) @ v


def _weights(layer: Attention, scores: Tensor) -> Tensor:
    """Softmax of scores [B, H, T, L]; a sink takes its part of the weight."""
    if layer.sinks is None:
        return torch.softmax(scores, -1)
    # Where queries that share keys are rows of one head, each row has the sink of its own head.
    sinks = layer.sinks.float().view(1, scores.shape[1], -1, 1).expand(*scores.shape[:3], 1)
    return torch.softmax(torch.cat((scores, sinks), -1), -1)[..., :-1]
