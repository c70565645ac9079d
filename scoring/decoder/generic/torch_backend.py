"""Executes a `GenericModel` in plain torch: the CPU back end of the generic tier."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import groupby

import torch
from torch import Tensor

from scoring.decoder.generic.model import GenericModel
from scoring.decoder.generic.recurrent import SlotStates
from scoring.decoder.kv_cache import KVCache
from scoring.decoder.torch_attention import PromptAttention, StepAttention

Part = tuple[int, int, int]  # slot, start position, number of tokens
#: Refusal of a further piece of a prompt.
ONE_PIECE = "a prompt comes in one piece: its modules begin their states anew with each"
Rows = Callable[[Iterable[tuple[int, int]]], AbstractContextManager[None]]


class GenericTorchBackend:
    """Prefill and a step of several slots, over the cache of a `KVCache`; `rows` tells adapters of a forward's rows."""

    def __init__(self, model: GenericModel, state: KVCache, rows: Rows = lambda rows: nullcontext()) -> None:
        self.model = model
        self.state = state
        self._rows = rows

    def prefill(self, parts: Sequence[Part], tokens: Tensor) -> Tensor:
        """Append tokens [T] (int64), part after part; logits [parts, vocabulary] after the last token of each.

        A part is (slot, start position, number of tokens).
        """
        if self.model.recurrent is not None:
            return self._prefill_alike(self.model.recurrent, parts, tokens)
        own = PromptAttention(self.model, self.state, parts)
        last = torch.tensor([count for _, _, count in parts], device=tokens.device).cumsum(0) - 1
        return self.model.forward(tokens, own.positions, last, own.attend)

    def speculate(self, parts: Sequence[Part], tokens: Tensor) -> Tensor:
        """Append tokens as `prefill` does; logits [T, vocabulary] after every one."""
        own = PromptAttention(self.model, self.state, parts)
        return self.model.forward(tokens, own.positions, torch.arange(len(tokens), device=tokens.device), own.attend)

    def step(self, slots: Tensor, longest: int) -> Tensor:
        """Feed a token to each of slots [B]; `longest` bounds their lengths, it included; logits [B, vocabulary]."""
        own, tokens = StepAttention(self.model, self.state, slots, longest), self.state.tokens[slots]
        if self.model.recurrent is not None:
            return self.model.forward_slots(slots, tokens, own.positions, own.attend)
        rows = torch.arange(len(slots), device=slots.device)
        return self.model.forward(tokens, own.positions, rows, own.attend)

    def _prefill_alike(self, states: SlotStates, parts: Sequence[Part], tokens: Tensor) -> Tensor:
        """Logits of parts, those of one length together, which go on with states or begin; kept once all are done."""
        if any(start for _, start, _ in parts) and not states.pieces:
            raise ValueError(ONE_PIECE)
        split = torch.split(tokens, [count for _, _, count in parts])
        found, left = dict[int, Tensor](), []
        for alike in alike_parts((start, count) for _, start, count in parts):
            own = PromptAttention(self.model, self.state, [parts[number] for number in alike])
            slots = torch.tensor([parts[number][0] for number in alike], device=tokens.device)
            cache = states.cache(slots if parts[alike[0]][1] else None)
            fed = torch.stack([split[number] for number in alike])
            with self._rows((slot, count) for slot, _, count in own.parts):
                logits = self.model.forward_batch(fed, own.positions.view_as(fed), cache, own.attend)
            left.append((slots, cache))
            found.update(zip(alike, logits, strict=True))
        for slots, cache in left:
            states.keep(slots, cache)
        return torch.stack([found[number] for number in range(len(parts))])


def alike_parts(parts: Iterable[tuple[int, int]]) -> Iterable[list[int]]:
    """Numbers of parts (start position, tokens) that one batch computes: equally long ones that begin, or go on."""
    kinds = [(count, start > 0) for start, count in parts]
    for _, alike in groupby(sorted(range(len(kinds)), key=kinds.__getitem__), kinds.__getitem__):
        yield list(alike)
