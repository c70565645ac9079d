"""What `generate` needs for rows with a grammar, and what is read from its output."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from scoring.decoder.logprobs import TokenLogprob, indices, measure_logprobs, read_logprobs
from scoring.decoder.sampler import unpack
from scoring.generation.grammars import Grammar, Grammars


class GrammarProcessor(LogitsProcessor):  # type: ignore[misc,unused-ignore]
    """Leaves each sequence of `generate` the tokens that its grammar allows; no beams."""

    def __init__(self, grammars: Grammars, own: Sequence[Grammar]) -> None:
        self._grammars = grammars
        self._own = own  # one per sequence

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        allowed = unpack(self._grammars.masks(self._own), scores.shape[1])
        for row, grammar in enumerate(self._own):
            if grammar.ended:  # padding follows
                allowed[row] = True
        return scores.masked_fill(~allowed.to(scores.device), -torch.inf)


def until_end(tokens: list[int], ends: Sequence[int]) -> list[int]:
    """Tokens up to and including the first end token."""
    return next((tokens[: i + 1] for i, token in enumerate(tokens) if token in ends), tokens)


def logprobs_of(made: Any, start: int, most: int) -> list[list[TokenLogprob]]:
    """Logprobs of the tokens of each sequence from `generate`; beams, which swap rows at each step, are traced."""
    beams = getattr(made, "beam_indices", None)
    found: list[list[TokenLogprob]] = [[] for _ in made.sequences]
    for step, logits in enumerate(made.logits[: made.sequences.shape[1] - start]):
        tokens = made.sequences[:, start + step]
        rows = indices(range(len(tokens)), logits.device) if beams is None else beams[:, step].clamp(min=0)
        measured = measure_logprobs(logits[rows], tokens, most).tolist()
        for own, chance in zip(found, read_logprobs(measured, [most] * len(found)), strict=True):
            own.append(chance)
    return found
