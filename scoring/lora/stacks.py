"""Matrices of adapters for one product of the base: as read, and as kernels take them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SPAN = 512  # columns of a product's outputs to which one program of the kernels adds


@dataclass
class LowRankStack:
    """Low-rank products of all adapters for one product of the base, zeros where an adapter has none.

    down [n, r, K] and up [n, r, N], the factor on them in `up`; r is the largest rank.
    """

    down: Tensor
    up: Tensor


#: Stacks beside one product, each with the first of its outputs: those of several modules may be one product's.
Parts = Sequence[tuple[int, LowRankStack]]


@dataclass(frozen=True)
class StaticLowRank:
    """Matrices of all adapters beside a product: down [adapters, parts, r, K], up [adapters, r, columns].

    `spans` [programs, 3] int32 are columns with the part that they belong to; other columns get nothing added.
    """

    down: Tensor
    up: Tensor
    spans: Tensor


def laid_out(parts: Parts) -> StaticLowRank:
    """Lay out stacks for the kernels: all parts of the largest rank, padded with zeros."""
    like = parts[0][1].down
    count, _, inputs = like.shape
    rank = max(stack.down.shape[1] for _, stack in parts)
    columns = max(first + stack.up.shape[2] for first, stack in parts)
    down, up = like.new_zeros(count, len(parts), rank, inputs), like.new_zeros(count, rank, columns)
    spans = []
    for part, (first, stack) in enumerate(parts):
        last = first + stack.up.shape[2]
        down[:, part, : stack.down.shape[1]] = stack.down
        up[:, : stack.up.shape[1], first:last] = stack.up
        spans += [(at, min(at + SPAN, last), part) for at in range(first, last, SPAN)]
    return StaticLowRank(down, up, torch.tensor(spans, dtype=torch.int32, device=like.device))


def packed(stacks: Sequence[LowRankStack]) -> Tensor:
    """First matrices of several stacks as one, which they then view."""
    if len(stacks) == 1:
        return stacks[0].down
    whole, first = torch.cat([stack.down for stack in stacks], 1), 0
    for stack in stacks:
        stack.down = whole[:, first : first + stack.down.shape[1]]
        first += stack.down.shape[1]
    return whole
