"""Margins: how far each token of an answer is from the one that the reference model picks in its place.

The statistic is that of Token-DiFR (arXiv 2511.20621): with the sampler's random numbers shared, the token that was
served should be the one of the highest logit plus noise. Each token is judged after the served ones before it, so that
one difference does not grow into others.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from scoring.decoder.sampler import gumbel

if TYPE_CHECKING:
    from torch import Tensor

CAP = 2.0  # nats; one token that is wholly wrong should not outweigh a hundred that are a little off
_REACH = 20.5  # nats below the likeliest token; the noise of 24-bit numbers spans less, so none further off is drawn


def pick_scores(logits: "Tensor", seed: int | None, length: int) -> "Tensor":
    """Scores whose highest is the picked token, float32 [tokens, vocabulary], of logits of that shape.

    With a seed each row has the noise of a draw at temperature 1, the first after `length` tokens; what cannot be drawn
    is -inf.
    """
    import numpy as np
    import torch

    scores = logits.float()
    if seed is None:
        return scores
    noisy = torch.full_like(scores, -torch.inf)
    for row, values in enumerate(scores):
        near = (values >= values.max() - _REACH).nonzero()[:, 0]
        words = near.numpy().astype(np.uint64)
        noisy[row, near] = values[near] + gumbel(seed, len(words), length + row, words)
    return noisy


def margins(scores: "Tensor", tokens: Sequence[int]) -> list[float]:
    """Differences of each row's highest score and its token's, at most CAP; 0 where the token is the one picked."""
    import torch

    own = scores.gather(1, torch.tensor(tokens)[:, None])[:, 0]
    found: list[float] = (scores.max(1).values - own).clamp(max=CAP).tolist()
    return found
