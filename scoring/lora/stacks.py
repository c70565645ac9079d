"""Matrices of adapters for one product of the base: as read, as a forward groups them, and as kernels take them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

SPAN = 512  # columns of a product's outputs to which one program of the kernels adds

#: Matrices of one adapter: down [r, K] and up [r, N], the factor on them in `up`.
Pair = tuple[Tensor, Tensor]


@dataclass(eq=False)
class LowRankStack:
    """Low-rank products of adapters for one product of the base, by the places of those that have one."""

    inputs: int
    outputs: int
    like: Tensor  # of whose type and on whose device they are
    at: dict[int, Pair] = field(default_factory=dict)

    def rank(self, places: Sequence[int]) -> int:
        """Largest rank of the adapters at some places; 0 if none of them has a product here."""
        return max((len(self.at[place][0]) for place in places if place in self.at), default=0)


#: Stacks beside one product, each with the first of its outputs: those of several modules may be one product's.
Parts = Sequence[tuple[int, LowRankStack]]


@dataclass(frozen=True)
class Gathered:
    """Matrices of some adapters beside a product: down [adapters, r, K], and for outputs up [adapters, r', N]."""

    down: Tensor
    ups: tuple[tuple[slice, Tensor], ...]  # their ranks are those of `down` in a row


def gathered(parts: Parts, places: Sequence[int]) -> Gathered | None:
    """Gather the matrices of the adapters at some places, padded with zeros; None if they have none here.

    Those of a single adapter take no more memory: its stacks then view them.
    """
    having = [(first, stack, rank) for first, stack in parts if (rank := stack.rank(places))]
    if not having:
        return None
    if len(places) == 1:
        return _single([(first, stack) for first, stack, _ in having], places[0])
    like = having[0][1].like
    down = like.new_zeros(len(places), sum(rank for _, _, rank in having), having[0][1].inputs)
    ups, begin = [], 0
    for first, stack, rank in having:
        up = like.new_zeros(len(places), rank, stack.outputs)
        for number, place in enumerate(places):
            if place in stack.at:
                own_down, own_up = stack.at[place]
                down[number, begin : begin + len(own_down)] = own_down
                up[number, : len(own_up)] = own_up
        ups.append((slice(first, first + stack.outputs), up))
        begin += rank
    return Gathered(down, tuple(ups))


def _single(parts: Parts, place: int) -> Gathered:
    pairs = [stack.at[place] for _, stack in parts]
    down = pairs[0][0] if len(pairs) == 1 else torch.cat([down for down, _ in pairs])
    ups, begin = [], 0
    for (first, stack), (own, up) in zip(parts, pairs, strict=True):
        stack.at[place] = down[begin : begin + len(own)], up
        ups.append((slice(first, first + stack.outputs), up[None]))
        begin += len(own)
    return Gathered(down[None], tuple(ups))


@dataclass(frozen=True, eq=False)
class StaticLowRank:
    """Matrices of all adapters beside a product: down [places, parts, r, K], up [places, r, columns].

    `spans` [programs, 3] int32 are columns with the part that they belong to; other columns get nothing added.
    `ranks` [places] int32, on the host, are those of r that an adapter has. They stay where they are, whatever adapters
    come and go: graphs hold their addresses.
    """

    down: Tensor
    up: Tensor
    spans: Tensor
    ranks: Tensor

    def put(self, parts: Parts, place: int) -> None:
        """Write what the stacks hold at a place, zeros where they hold nothing."""
        self.down[place].zero_()
        self.up[place].zero_()
        self.ranks[place] = max(stack.rank([place]) for _, stack in parts)
        for part, (first, stack) in enumerate(parts):
            if place in stack.at:
                down, up = stack.at[place]
                self.down[place, part, : len(down)] = down
                self.up[place, : len(up), first : first + stack.outputs] = up


def laid_out(parts: Parts, places: int, rank: int = 0) -> StaticLowRank:
    """Lay out stacks of so many places for the kernels: all of one rank, the largest or as given, padded with zeros."""
    like, inputs = parts[0][1].like, parts[0][1].inputs
    rank = rank or max(stack.rank(range(places)) for _, stack in parts)
    columns = max(first + stack.outputs for first, stack in parts)
    spans = []
    for part, (first, stack) in enumerate(parts):
        last = first + stack.outputs
        spans += [(at, min(at + SPAN, last), part) for at in range(first, last, SPAN)]
    made = StaticLowRank(
        like.new_zeros(places, len(parts), rank, inputs),
        like.new_zeros(places, rank, columns),
        torch.tensor(spans, dtype=torch.int32, device=like.device),
        torch.zeros(places, dtype=torch.int32),
    )
    for place in range(places):
        made.put(parts, place)
    return made
