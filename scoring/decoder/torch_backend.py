"""Executes a `DecoderModel` in plain torch: the CPU back end, and the reference for the kernels."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from scoring.decoder.kv_cache import KVCache
from scoring.decoder.long_rotary import rows_of
from scoring.decoder.model import Activation, DecoderModel, Linear, Mixture, Norm, Rotary
from scoring.decoder.native_step import NativeStep
from scoring.decoder.prompt_halves import PromptHalves
from scoring.decoder.torch_attention import PromptAttention, StepAttention
from scoring.decoder.torch_experts import mixture


class LayerAttention(Protocol):
    """Attention of the layers over what a forward appends to the cache."""

    positions: Tensor  # of the rows
    long: Tensor  # of the rows: 1 if the slot uses the second of two rotary tables

    def attend(self, index: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of a layer for q [T, heads, D], k and v [T, kv_heads, D]: [T, heads * D]."""


class TorchBackend:
    """Prefill and a step of several slots, over the cache of a `KVCache`."""

    def __init__(self, model: DecoderModel, state: KVCache) -> None:
        self.model = model
        self.state = state
        self.narrow: NativeStep | None = None  # over narrow weights
        self._halves = PromptHalves()

    def prefill(self, parts: Sequence[tuple[int, int, int]], tokens: Tensor) -> Tensor:
        """Append tokens [T] (int64), part after part; logits [parts, vocabulary] after the last token of each.

        A part is (slot, start position, number of tokens). Each product runs once for all parts.
        """
        hidden = self._halves.run(parts, tokens, self._last) if self._halved() else None
        return self.head(self._last(parts, tokens) if hidden is None else hidden)

    def _halved(self) -> bool:
        """True if two forwards may run at once: no sums over ranks, and no adapters, which know one forward's rows."""
        if self.model.device.type != "cpu" or self.model.team is not None:
            return False
        return all(each.adapters is None for each in self.model.products())

    def _last(self, parts: Sequence[tuple[int, int, int]], tokens: Tensor) -> Tensor:
        """Hidden states [parts, E] of the last token of each part, all of which are appended."""
        hidden = self._run(tokens, PromptAttention(self.model, self.state, parts))
        last = torch.tensor([count for _, _, count in parts], device=tokens.device).cumsum(0) - 1
        return hidden[last]

    def speculate(self, parts: Sequence[tuple[int, int, int]], tokens: Tensor) -> Tensor:
        """Append tokens as `prefill` does; logits [T, vocabulary] after every one."""
        return self.head(self._run(tokens, PromptAttention(self.model, self.state, parts)))

    def step(self, slots: Tensor, longest: int) -> Tensor:
        """Feed a token to each of slots [B]; `longest` bounds their lengths, it included; logits [B, vocabulary]."""
        tokens = self.state.tokens[slots]
        if self.narrow is not None:  # of any number of slots: a row's bits do not depend on the others
            hidden = self._embed(tokens, self.state.lengths[slots].long())
            return self.model.finish(self.narrow(slots, hidden))
        return self.head(self._run(tokens, StepAttention(self.model, self.state, slots, longest)))

    def use_narrow(self) -> None:
        """Have steps read the products' narrow weights in compiled C, which takes them over; raises NoNativeStep."""
        self.use_wide()
        self.narrow = NativeStep(self.model, self.state)

    def use_wide(self) -> None:
        """Have all steps read the wide weights again."""
        if self.narrow is not None:
            self.narrow.close()
        self.narrow = None

    def head(self, hidden: Tensor) -> Tensor:
        """Logits [T, vocabulary] of hidden states [T, E]."""
        return self.model.finish(self.product(normalize(hidden, self.model.norm), self.model.head))

    def _run(self, tokens: Tensor, attention: LayerAttention) -> Tensor:
        hidden = self._embed(tokens, attention.positions)
        for index, layer in enumerate(self.model.layers):
            terms = [(self._attend(index, normalize(hidden, layer.norm1), attention), layer.attention.out)]
            if not layer.parallel:
                hidden = self._add(hidden, self._total(terms), layer.post1)
                terms = []
            normed = normalize(hidden, layer.norm2)
            if isinstance(layer.mlp, Mixture):
                found = self._summed(mixture(normed, layer.mlp, self.product, self.activate))
            else:
                up = self.product(normed, layer.mlp.up)
                terms.append((self.activate(up, layer.mlp.activation, layer.mlp.gated), layer.mlp.down))
                found = self._total(terms)
            hidden = self._add(hidden, found, layer.post2)
        return hidden

    def _add(self, hidden: Tensor, found: Tensor, norm: Norm | None) -> Tensor:
        """Add a block's output to the residual stream, post-normalised if the block has a post norm, and scaled."""
        found = normalize(found, norm)
        return hidden + (found if self.model.residual_scale == 1.0 else found * self.model.residual_scale)

    def _total(self, terms: Sequence[tuple[Tensor, Linear]]) -> Tensor:
        """Sum of products of inputs [T, K], all-reduced over ranks if each holds a part of K: [T, E]."""
        parts = [self.product(x, linear, biased=self.model.team is None) for x, linear in terms]
        total = self._summed(parts[0] if len(parts) == 1 else parts[0] + parts[1])
        if self.model.team is not None:
            for bias in (linear.bias for _, linear in terms if linear.bias is not None):
                total = total + bias
        return total

    def _summed(self, part: Tensor) -> Tensor:
        """Sum of the ranks' parts, in place; one's own where there are none."""
        if self.model.team is not None:
            self.model.team.sum(part)
        return part

    def _embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        model = self.model
        hidden = functional.embedding(tokens, model.embedding)
        if model.embedding_scale != 1.0:
            hidden = hidden * model.embedding_scale
        if model.positions is not None:
            hidden = hidden + functional.embedding(positions + model.position_offset, model.positions)
        return normalize(hidden, model.embedding_norm)

    def _attend(self, index: int, normed: Tensor, attention: LayerAttention) -> Tensor:
        model, layer = self.model, self.model.layers[index].attention
        qkv = self.product(normed, layer.qkv)
        if layer.per_head:
            q, k, v = qkv.view(-1, model.heads, 3, model.head_dim).unbind(2)
        else:
            sizes = [model.heads, model.kv_heads, model.kv_heads]
            q, k, v = torch.split(qkv.view(-1, sum(sizes), model.head_dim), sizes, 1)
        if layer.jointly:
            q, k = (self._normalize_jointly(x, norm) for x, norm in ((q, layer.q_norm), (k, layer.k_norm)))
        else:
            q, k = normalize(q, layer.q_norm), normalize(k, layer.k_norm)
        if layer.rotary is not None:
            at = rows_of(layer.rotary, attention.positions, attention.long)
            q, k = self._rotate(q, at, layer.rotary), self._rotate(k, at, layer.rotary)
        return attention.attend(index, q, k, v)

    def _normalize_jointly(self, x: Tensor, norm: Norm | None) -> Tensor:
        """Normalise x [T, heads, D] over all heads, of which each rank may have a part."""
        if self.model.team is None or norm is None:
            return normalize(x.flatten(1), norm).view_as(x)
        wide = x.flatten(1).float()
        squares = wide.square().sum(-1, keepdim=True)
        self.model.team.sum(squares)
        mean = squares / (wide.shape[1] * self.model.team.degree)
        return (wide * torch.rsqrt(mean + norm.eps) * norm.gain).to(x.dtype).view_as(x)

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

    def product(self, x: Tensor, linear: Linear, biased: bool = True) -> Tensor:
        """Apply a product to x [T, K], and what the adapters of its rows add: [T, N]."""
        out = functional.linear(x, linear.full, linear.bias if biased else None)
        return out if linear.adapters is None else linear.adapters.add(x, out)

    def activate(self, x: Tensor, activation: Activation, gated: bool) -> Tensor:
        """Activation of x [T, F], or if gated of [T, 2F] with the gate first: [T, F]."""
        gate, up = x.chunk(2, -1) if gated else (x, None)
        if activation == "relu":
            y = functional.relu(gate)
        elif activation == "silu":
            y = functional.silu(gate)
        else:
            y = functional.gelu(gate, approximate="tanh" if activation == "gelu_tanh" else "none")
        return y if up is None else y * up


def normalize(x: Tensor, norm: Norm | None) -> Tensor:
    """Normalise x [T, E] in float32, returned in x's dtype; x itself without a norm."""
    if norm is None:
        return x
    wide = x.float()
    if norm.kind == "layer":
        return functional.layer_norm(wide, (wide.shape[-1],), norm.gain, norm.shift, norm.eps).to(x.dtype)
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + norm.eps) * norm.gain).to(x.dtype)
