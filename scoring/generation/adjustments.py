"""Numbers that a request has added to its logits: biases of tokens, penalties on what its answer holds already, bans.

Penalties are OpenAI's: each of an answer's tokens loses frequency_penalty for every time it was generated, and
presence_penalty once; the prompt does not count. Source: https://platform.openai.com/docs/guides/text-generation.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor
from transformers import LogitsProcessor

from scoring.decoder.sampler import NO_TOKEN, OTHERS, add_to
from scoring.errors import InvalidParameter

_BANNED = float("-inf")


@dataclass
class Taken:
    """Tokens of an answer so far: how often each was generated, and the last of them in order."""

    counts: Counter[int] = field(default_factory=Counter)
    last: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, tokens: Sequence[int]) -> "Taken":
        """State after these tokens."""
        return cls(Counter(tokens), list(tokens))

    def append(self, token: int, kept: int) -> None:
        """Take the next token, and keep the last `kept` in order."""
        self.counts[token] += 1
        self.last = [*self.last, token][-kept:] if kept else []


@dataclass(frozen=True)
class Adjustments:
    """Numbers to add to a row's logits before its repetition penalty, its grammar and its temperature."""

    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()  # by token, in ascending order
    held: tuple[int, ...] = ()  # tokens that may not come among the first `held_until` of the answer
    held_until: int = 0
    allowed: tuple[int, ...] = ()  # the only tokens that may come; empty: all
    banned: tuple[tuple[int, ...], ...] = ()  # runs of tokens that may not come

    def __bool__(self) -> bool:
        """True if anything is ever added."""
        penalties = self.presence_penalty or self.frequency_penalty
        return bool(penalties or self.logit_bias or self.held or self.allowed or self.banned)

    @property
    def memory(self) -> int:
        """Number of an answer's last tokens that decide what is banned next."""
        return max((len(run) - 1 for run in self.banned), default=0)

    def after(self, taken: Taken) -> dict[int, float]:
        """Numbers to add by token, after an answer that has taken these tokens."""
        added = dict(self.logit_bias)
        if self.presence_penalty or self.frequency_penalty:
            for token, count in taken.counts.items():
                added[token] = added.get(token, 0.0) - self.presence_penalty - self.frequency_penalty * count
        if self.allowed:
            added = {token: added.get(token, 0.0) for token in self.allowed} | {OTHERS: _BANNED}
        if self.held and taken.counts.total() < self.held_until:
            added |= dict.fromkeys(self.held, _BANNED)
        for *before, last in self.banned:
            if taken.last[len(taken.last) - len(before) :] == before:
                added[last] = _BANNED
        return added


class AdjustmentsProcessor(LogitsProcessor):  # type: ignore[misc,unused-ignore]
    """Adds to the logits of `generate`'s sequences, whose answers begin at token `start`."""

    def __init__(self, adjustments: Adjustments, start: int) -> None:
        self._adjustments = adjustments
        self._start = start

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        answers = input_ids[:, self._start :].tolist()
        added = add_to(scores.clone(), [self._adjustments.after(Taken.of(tokens)) for tokens in answers])
        if bool((added == _BANNED).all(-1).any()):
            raise InvalidParameter(*NO_TOKEN)
        return added
