"""Executes a `DecoderModel` in plain torch: the CPU back end, and the reference for the kernels."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from scoring.decoder.kv_cache import KVCache
from scoring.decoder.model import Activation, Attention, DecoderModel, Linear, Norm, Rotary

#: (layer, q [T, heads, D], k and v [T, kv_heads, D]) -> [T, heads * D]
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


class TorchBackend:
    """Prefill and a step of several slots, over the cache of a `KVCache`."""

    def __init__(self, form: DecoderModel, state: KVCache) -> None:
        self.form = form
        self.state = state

    def prefill(self, parts: Sequence[tuple[int, int, int]], tokens: Tensor) -> Tensor:
        """Append tokens [T] (int64), part after part; logits [parts, vocabulary] after the last token of each.

        A part is (slot, start position, number of tokens). Each product runs once for all parts.
        """
        positions = torch.cat([torch.arange(at, at + count, device=tokens.device) for _, at, count in parts])
        counts = [count for _, _, count in parts]
        masks: dict[tuple[int, int], Tensor | None] = {}

        def attend(index: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            layer = self.form.layers[index].attention
            out = []
            split = zip(*(torch.split(whole, counts) for whole in (q, k, v, positions)), strict=True)
            for (slot, start, count), (own_q, own_k, own_v, where) in zip(parts, split, strict=True):
                end = start + count
                keys, values = self.state.keys[index, slot], self.state.values[index, slot]
                keys[:, start:end] = own_k.transpose(0, 1)
                values[:, start:end] = own_v.transpose(0, 1)
                if (slot, layer.window) not in masks:
                    masks[slot, layer.window] = self._mask(where[None], end, layer.window)
                live = keys[None, :, :end], values[None, :, :end]
                seen = attention(layer, own_q.transpose(0, 1)[None], *live, masks[slot, layer.window])
                out.append(seen[0].transpose(0, 1).flatten(1))
            return torch.cat(out)

        hidden = self._run(tokens, positions, attend)
        last = torch.tensor(counts, device=tokens.device).cumsum(0) - 1
        return self.head(hidden[last])

    def step(self, slots: Tensor, longest: int) -> Tensor:
        """Feed a token to each of slots [B]; `longest` bounds their lengths, it included; logits [B, vocabulary]."""
        positions = self.state.lengths[slots].long()
        masks: dict[int, Tensor | None] = {}
        rows = _rows(slots)

        def attend(index: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            layer = self.form.layers[index].attention
            keys, values = self.state.keys[index], self.state.values[index]
            keys[slots, :, positions] = k
            values[slots, :, positions] = v
            if layer.window not in masks:
                masks[layer.window] = self._step_mask(positions, longest, layer.window)
            # Queries that share keys are rows of one product, so that keys are not repeated.
            shared = q.view(len(q), self.form.kv_heads, -1, self.form.head_dim)
            live = keys[rows, :, :longest], values[rows, :, :longest]
            return attention(layer, shared, *live, masks[layer.window]).flatten(1)

        return self.head(self._run(self.state.tokens[slots], positions, attend))

    def head(self, hidden: Tensor) -> Tensor:
        """Logits [T, vocabulary] of hidden states [T, E]."""
        normed = hidden if self.form.norm is None else normalize(hidden, self.form.norm)
        return self.form.finish(product(normed, self.form.head))

    def _run(self, tokens: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        hidden = self._embed(tokens, positions)
        for index, layer in enumerate(self.form.layers):
            terms = [(self._attend(index, normalize(hidden, layer.norm1), positions, attend), layer.attention.out)]
            if not layer.parallel:
                hidden = self._add(hidden, self._total(terms), layer.post1)
                terms = []
            up = product(normalize(hidden, layer.norm2), layer.mlp.up)
            terms.append((activate(up, layer.mlp.activation, layer.mlp.gated), layer.mlp.down))
            hidden = self._add(hidden, self._total(terms), layer.post2)
        return hidden

    def _add(self, hidden: Tensor, found: Tensor, norm: Norm | None) -> Tensor:
        """Add a block's output to the residual stream, post-normalised if the block has a post norm, and scaled."""
        found = found if norm is None else normalize(found, norm)
        return hidden + (found if self.form.residual_scale == 1.0 else found * self.form.residual_scale)

    def _total(self, terms: Sequence[tuple[Tensor, Linear]]) -> Tensor:
        """Sum of products of inputs [T, K], all-reduced over ranks if each holds a part of K: [T, E]."""
        parts = [functional.linear(x, linear.full, None if self.form.team else linear.bias) for x, linear in terms]
        total = parts[0] if len(parts) == 1 else parts[0] + parts[1]
        if self.form.team is not None:
            self.form.team.sum(total)
            for bias in (linear.bias for _, linear in terms if linear.bias is not None):
                total = total + bias
        return total

    def _embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        form = self.form
        hidden = functional.embedding(tokens, form.embedding)
        if form.embedding_scale != 1.0:
            hidden = hidden * form.embedding_scale
        if form.positions is not None:
            hidden = hidden + functional.embedding(positions + form.position_offset, form.positions)
        return hidden if form.embedding_norm is None else normalize(hidden, form.embedding_norm)

    def _attend(self, index: int, normed: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        form, layer = self.form, self.form.layers[index].attention
        qkv = product(normed, layer.qkv)
        if layer.per_head:
            q, k, v = qkv.view(-1, form.heads, 3, form.head_dim).unbind(2)
        else:
            sizes = [form.heads, form.kv_heads, form.kv_heads]
            q, k, v = torch.split(qkv.view(-1, sum(sizes), form.head_dim), sizes, 1)
        if layer.q_norm is not None and layer.k_norm is not None:
            q, k = normalize(q, layer.q_norm), normalize(k, layer.k_norm)
        if layer.rotary is not None:
            q, k = self._rotate(q, positions, layer.rotary), self._rotate(k, positions, layer.rotary)
        return attend(index, q, k, v)

    def _rotate(self, x: Tensor, positions: Tensor, rotary: Rotary) -> Tensor:
        half = rotary.half
        cos = rotary.cos[positions, None, :half].to(x.dtype)
        sin = rotary.sin[positions, None, :half].to(x.dtype)
        turned, rest = x[..., : 2 * half], x[..., 2 * half :]
        if rotary.interleaved:
            a, b = turned[..., 0::2], turned[..., 1::2]
            pairs = torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)
        else:
            a, b = turned[..., :half], turned[..., half:]
            pairs = torch.cat((a * cos - b * sin, b * cos + a * sin), -1)
        return torch.cat((pairs, rest), -1) if rest.shape[-1] else pairs

    def _mask(self, positions: Tensor, length: int, window: int) -> Tensor | None:
        """Additive mask [B or 1, 1 or heads, T, length] in the form's dtype, or None for a plain causal prefill."""
        rows = positions.shape[1]
        if window == 0 and self.form.alibi is None and rows == length:
            return None
        keys = torch.arange(length, device=positions.device)
        distance = positions[:, None, :, None] - keys
        hidden = distance < 0
        if window:
            hidden = hidden | (distance >= window)
        bias = torch.zeros(distance.shape, device=distance.device)
        if self.form.alibi is not None:
            bias = -self.form.alibi[None, :, None, None] * distance
        return bias.masked_fill(hidden, -math.inf).to(self.form.dtype)

    def _step_mask(self, positions: Tensor, length: int, window: int) -> Tensor:
        """Mask, added: [B, 1 or kv_heads, queries per key head or 1, length] for one query at each of positions [B]."""
        mask = self._mask(positions[:, None], length, window)
        assert mask is not None
        if mask.shape[1] == 1:
            return mask.expand(-1, -1, self.form.heads // self.form.kv_heads, -1)
        return mask.view(len(mask), self.form.kv_heads, -1, length)


def _rows(slots: Tensor) -> Tensor | slice:
    """Consecutive slots as a slice, which reads the cache in place; other slots unchanged."""
    numbers = slots.tolist() if slots.device.type == "cpu" else []
    if numbers and numbers == list(range(numbers[0], numbers[0] + len(numbers))):
        return slice(numbers[0], numbers[0] + len(numbers))
    return slots


def product(x: Tensor, linear: Linear) -> Tensor:
    """Apply a product to x [T, K]: [T, N]."""
    return functional.linear(x, linear.full, linear.bias)


def normalize(x: Tensor, norm: Norm) -> Tensor:
    """Normalise x [T, E] in float32, returned in x's dtype."""
    wide = x.float()
    if norm.kind == "layer":
        return functional.layer_norm(wide, (wide.shape[-1],), norm.gain, norm.shift, norm.eps).to(x.dtype)
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + norm.eps) * norm.gain).to(x.dtype)


def attention(layer: Attention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of q [B, H, T, D] over k and v [B, KV, L, D], causal without a mask: [B, H, T, D]."""
    grouped = q.shape[1] != k.shape[1]
    if not layer.cap:
        return functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=layer.scale, enable_gqa=grouped
        )
    if grouped:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = layer.cap * torch.tanh(q @ k.transpose(-1, -2) * (layer.scale / layer.cap))
    if mask is None:
        mask = torch.full(scores.shape[-2:], -math.inf, dtype=q.dtype, device=q.device).triu(1)
    return torch.softmax((scores + mask).float(), -1).to(q.dtype) @ v


def activate(x: Tensor, activation: Activation, gated: bool) -> Tensor:
    """Activation of x [T, F], or if gated of [T, 2F] with the gate first: [T, F]."""
    gate, up = x.chunk(2, -1) if gated else (x, None)
    if activation == "relu":
        y = functional.relu(gate)
    elif activation == "silu":
        y = functional.silu(gate)
    else:
        y = functional.gelu(gate, approximate="tanh" if activation == "gelu_tanh" else "none")
    return y if up is None else y * up
