"""Attention over a decoder's cache in plain torch: writes keys and values of new tokens, and reads the live ones."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from scoring.decoder.kv_cache import KVCache
from scoring.decoder.model import Attention, CachedModel


class PromptAttention:
    """Attention of the layers in one prefill of parts (slot, start position, number of tokens)."""

    def __init__(self, form: CachedModel, state: KVCache, parts: Sequence[tuple[int, int, int]]) -> None:
        self.form = form
        self.state = state
        self.parts = parts
        device = form.device
        self.positions = torch.cat([torch.arange(at, at + count, device=device) for _, at, count in parts])
        self._counts = [count for _, _, count in parts]
        self._masks: dict[tuple[int, int], Tensor | None] = {}

    def attend(self, index: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of a layer for q [T, heads, D], k and v [T, kv_heads, D], part after part: [T, heads * D]."""
        layer = self.form.layers[index].attention
        out = []
        split = zip(*(torch.split(whole, self._counts) for whole in (q, k, v, self.positions)), strict=True)
        for (slot, start, count), (own_q, own_k, own_v, where) in zip(self.parts, split, strict=True):
            end = start + count
            keys, values = self.state.keys[index, slot], self.state.values[index, slot]
            keys[:, start:end] = own_k.transpose(0, 1)
            values[:, start:end] = own_v.transpose(0, 1)
            if (slot, layer.window) not in self._masks:
                self._masks[slot, layer.window] = _mask(self.form, where[None], end, layer.window)
            live = keys[None, :, :end], values[None, :, :end]
            seen = attention(layer, own_q.transpose(0, 1)[None], *live, self._masks[slot, layer.window])
            out.append(seen[0].transpose(0, 1).flatten(1))
        return torch.cat(out)


class StepAttention:
    """Attention of the layers in one step of slots [B]; `longest` bounds their lengths, the new token included."""

    def __init__(self, form: CachedModel, state: KVCache, slots: Tensor, longest: int) -> None:
        self.form = form
        self.state = state
        self.positions = state.lengths[slots].long()
        self._slots, self._longest = slots, longest
        self._rows = _rows(slots)
        self._masks: dict[int, Tensor] = {}

    def attend(self, index: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of a layer for q [B, heads, D], k and v [B, kv_heads, D]: [B, heads * D]."""
        layer = self.form.layers[index].attention
        keys, values = self.state.keys[index], self.state.values[index]
        keys[self._slots, :, self.positions] = k
        values[self._slots, :, self.positions] = v
        if layer.window not in self._masks:
            self._masks[layer.window] = _step_mask(self.form, self.positions, self._longest, layer.window)
        # Queries that share keys are rows of one product, so that keys are not repeated.
        shared = q.view(len(q), self.form.kv_heads, -1, self.form.head_dim)
        live = keys[self._rows, :, : self._longest], values[self._rows, :, : self._longest]
        return attention(layer, shared, *live, self._masks[layer.window]).flatten(1)


def _mask(form: CachedModel, positions: Tensor, length: int, window: int) -> Tensor | None:
    """Additive mask [B or 1, 1 or heads, T, length] in the form's dtype, or None for a plain causal prefill."""
    rows = positions.shape[1]
    if window == 0 and form.alibi is None and rows == length:
        return None
    keys = torch.arange(length, device=positions.device)
    distance = positions[:, None, :, None] - keys
    hidden = distance < 0
    if window:
        hidden = hidden | (distance >= window)
    bias = torch.zeros(distance.shape, device=distance.device)
    if form.alibi is not None:
        bias = -form.alibi[None, :, None, None] * distance
    return bias.masked_fill(hidden, -math.inf).to(form.dtype)


def _step_mask(form: CachedModel, positions: Tensor, length: int, window: int) -> Tensor:
    """Mask, added: [B, 1 or kv_heads, queries per key head or 1, length] for one query at each of positions [B]."""
    mask = _mask(form, positions[:, None], length, window)
    assert mask is not None
    if mask.shape[1] == 1:
        return mask.expand(-1, -1, form.heads // form.kv_heads, -1)
    return mask.view(len(mask), form.kv_heads, -1, length)


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
