"""Executes a `GenericModel` in plain torch: the CPU back end of the generic tier."""

from collections.abc import Sequence

import torch
from torch import Tensor

from scoring.decoder.generic.model import GenericModel
from scoring.decoder.kv_cache import KVCache
from scoring.decoder.torch_attention import PromptAttention, StepAttention


class GenericTorchBackend:
    """Prefill and a step of several slots, over the cache of a `KVCache`."""

    def __init__(self, model: GenericModel, state: KVCache) -> None:
        self.model = model
        self.state = state

    def prefill(self, parts: Sequence[tuple[int, int, int]], tokens: Tensor) -> Tensor:
        """Append tokens [T] (int64), part after part; logits [parts, vocabulary] after the last token of each.

        A part is (slot, start position, number of tokens).
        """
        own = PromptAttention(self.model, self.state, parts)
        last = torch.tensor([count for _, _, count in parts], device=tokens.device).cumsum(0) - 1
        return self.model.forward(tokens, own.positions, last, own.attend)

    def speculate(self, parts: Sequence[tuple[int, int, int]], tokens: Tensor) -> Tensor:
        """Append tokens as `prefill` does; logits [T, vocabulary] after every one."""
        own = PromptAttention(self.model, self.state, parts)
        return self.model.forward(tokens, own.positions, torch.arange(len(tokens), device=tokens.device), own.attend)

    def step(self, slots: Tensor, longest: int) -> Tensor:
        """Feed a token to each of slots [B]; `longest` bounds their lengths, it included; logits [B, vocabulary]."""
        own = StepAttention(self.model, self.state, slots, longest)
        rows = torch.arange(len(slots), device=slots.device)
        return self.model.forward(self.state.tokens[slots], own.positions, rows, own.attend)
