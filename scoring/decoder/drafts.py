"""Drafts: tokens fed behind a slot's last one before the model has picked them, and kept as far as it then does.

A token is kept exactly if it is the one picked from the logits before it, and the noise of a draw depends on seed and
position alone: sampled or not, a sequence is the same as without drafts.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from scoring.decoder.kv_cache import KVCache
from scoring.decoder.sampler import pick_all

SIZES = (8, 16, 32)  # tokens fed in a step on a GPU, up to which it is padded
SLOTS = 8  # most slots of one

Fed = tuple[int, Sequence[int]]  # a slot; its last token, then the draft of those after it
Placed = tuple[int, int, Sequence[int]]  # slot, position of the first token fed, tokens fed


class Rows(Protocol):
    """A back end in plain torch."""

    def speculate(self, parts: Sequence[tuple[int, int, int]], tokens: Tensor) -> Tensor:
        """Append tokens; logits [T, vocabulary] after every one of them."""


def kept(fed: Sequence[Fed], picked: Sequence[int]) -> list[list[int]]:
    """Next tokens of each slot, at least one, from those picked after every token fed."""
    found, row = [], 0
    for _, tokens in fed:
        run = [picked[row]]
        while len(run) < len(tokens) and tokens[len(run)] == run[-1]:
            run.append(picked[row + len(run)])
        found.append(run)
        row += len(tokens)
    return found


class Runs:
    """Next tokens of each slot of a step with drafts; `read` waits for those picked, `then` takes the slots' own."""

    def __init__(
        self, fed: Sequence[Fed], read: Callable[[], Sequence[int]], then: Callable[[list[list[int]]], None]
    ) -> None:
        self._fed = fed
        self._read = read
        self._then = then
        self._found: list[list[int]] = []

    def runs(self) -> list[list[int]]:
        """Tokens of each slot in their order, at least one; waits for them."""
        if not self._found:
            self._found = kept(self._fed, self._read())
            self._then(self._found)
        return self._found


def speculate(back_end: Rows, state: KVCache, placed: Sequence[Placed]) -> tuple[Tensor, Tensor]:
    """Run a step with drafts in plain torch; logits [T, vocabulary] after the tokens fed, and the tokens [T] picked."""
    device = state.tokens.device
    tokens = torch.tensor([token for _, _, some in placed for token in some], device=device)
    rows = torch.tensor([slot for slot, _, some in placed for _ in some], device=device)
    lengths = torch.tensor([at + number for _, at, some in placed for number in range(1, len(some) + 1)], device=device)
    logits = back_end.speculate([(slot, at, len(some)) for slot, at, some in placed], tokens)
    picked = pick_all(logits, state, rows, lengths=lengths)
    runs = kept([(slot, some) for slot, _, some in placed], picked)
    for (slot, at, _), run in zip(placed, runs, strict=True):
        state.lengths[slot], state.tokens[slot] = at + len(run), run[-1]
        state.seen[slot, torch.tensor(run, device=device)] = 1
    return logits, torch.tensor(picked, device=device)
