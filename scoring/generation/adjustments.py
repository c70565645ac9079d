"""Numbers that a request has added to its logits: biases of tokens, and penalties on what its answer holds already.

Penalties are OpenAI's: each of an answer's tokens loses frequency_penalty for every time it was generated, and
presence_penalty once; the prompt does not count. Source: https://platform.openai.com/docs/guides/text-generation.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor
from transformers import LogitsProcessor

from scoring.decoder.sampler import add_to


@dataclass(frozen=True)
class Adjustments:
    """Numbers to add to a row's logits before its repetition penalty, its grammar and its temperature."""

    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()  # by token, in ascending order
    held: tuple[int, ...] = ()  # tokens that may not come among the first `held_until` of the answer
    held_until: int = 0

    def __bool__(self) -> bool:
        """True if anything is ever added."""
        return bool(self.presence_penalty or self.frequency_penalty or self.logit_bias or self.held)

    def after(self, counts: Mapping[int, int]) -> dict[int, float]:
        """Numbers to add by token, after an answer with these `counts` of tokens."""
        added = dict(self.logit_bias)
        if self.presence_penalty or self.frequency_penalty:
            for token, count in counts.items():
                added[token] = added.get(token, 0.0) - self.presence_penalty - self.frequency_penalty * count
        if self.held and sum(counts.values()) < self.held_until:
            added |= dict.fromkeys(self.held, float("-inf"))
        return added


class AdjustmentsProcessor(LogitsProcessor):  # type: ignore[misc,unused-ignore]
    """Adds to the logits of `generate`'s sequences, whose answers begin at token `start`."""

    def __init__(self, adjustments: Adjustments, start: int) -> None:
        self._adjustments = adjustments
        self._start = start

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return add_to(
            scores.clone(), [self._adjustments.after(Counter(row)) for row in input_ids[:, self._start :].tolist()]
        )
