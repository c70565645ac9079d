"""Arguments of `generate` for rows with a grammar, and readers of its output."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from scoring.decoder.logprobs import TokenLogprob, indices, measure_logprobs, read_logprobs
from scoring.decoder.sampler import NO_TOKEN, unpack
from scoring.engine.row import Between, Row
from scoring.errors import InvalidParameter
from scoring.generation.grammars import Grammar, Grammars

_PIECE = 256  # tokens of a prompt whose logits are held at once


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
        bound = scores.masked_fill(~allowed.to(scores.device), -torch.inf)
        if bool((bound == -torch.inf).all(-1).any()):
            raise InvalidParameter(*NO_TOKEN)
        return bound


def until_end(tokens: list[int], ends: Sequence[int]) -> list[int]:
    """Tokens up to and including the first end token."""
    return next((tokens[: i + 1] for i, token in enumerate(tokens) if token in ends), tokens)


@torch.inference_mode()
def prompt_logprobs(model: Any, row: Row, most: int, between: Between) -> list[TokenLogprob] | None:
    """Logprobs of a prompt's tokens after the first, with `most` of the likeliest each, computed in pieces.

    None if the row is cancelled before its last piece.
    """
    ids = row.features["input_ids"]
    found: list[TokenLogprob] = []
    past, size = None, _PIECE
    at = 0
    while at < len(ids) - 1:
        if row.cancelled.is_set():
            return None
        piece = torch.tensor([ids[at : at + size]], device=model.device)
        made = model(input_ids=piece, past_key_values=past, use_cache=True)
        past = getattr(made, "past_key_values", None)
        if past is None and size < len(ids):  # a model that keeps no keys and values: all at once
            found, at, size = [], 0, len(ids)
            continue
        following = torch.tensor(ids[at + 1 : at + 1 + size], device=model.device)
        measured = measure_logprobs(made.logits[0, : len(following)], following, most).tolist()
        found += read_logprobs(measured, [most] * len(measured))
        at += size
        between()
    return found


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
