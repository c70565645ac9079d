"""Groups of layers that share a block table, so that layers that see a window keep no more than it.

A block of the cache holds 64 tokens' keys and values for the layers of one group, all of which see equally far and have
heads of one shape. A sequence has a table and blocks of its own in each group: those before a window go back, those of
other groups stay. All groups take their blocks from one pool, of as much room as the largest group needs.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from scoring.decoder.block_pool import BLOCK, blocks_of

#: Tokens of one step: about as many as a device computes in the time it takes to read the weights a few times.
STEP_TOKENS = {"cpu": 128, "cuda": 8192}
_TYPICAL = 4  # windows: a sequence of that length is what groups are made for
_FEW = 1.05  # of the least memory that such a sequence can take; within it, the fewest groups

Shape = tuple[int, int]  # heads of keys and values, and numbers of each


class Kept(NamedTuple):
    """Keys and values that a layer keeps of a sequence: of so many heads, as far as its window."""

    window: int  # keys that a token sees, itself included; 0 is all
    heads: int = 1
    width: int = 1  # numbers of a head
    source: int = -1  # layer whose keys and values it reads, and keeps none of its own; -1: it keeps them

    @property
    def shape(self) -> Shape:
        """Heads, and their width."""
        return self.heads, self.width

    def rewound(self, tokens: int) -> "Kept":
        """The same for sequences that may be set back by so many tokens."""
        return self._replace(window=self.window and self.window + tokens)


@dataclass(frozen=True)
class LayerGroups:
    """Groups of layers, those that see all keys first; a layer that reads another's has that one's place."""

    size: int  # numbers of a token's keys for which a block has room
    windows: tuple[int, ...]  # of each group, keys that a token sees, itself included; 0 is all
    shapes: tuple[Shape, ...]  # of each group
    places: tuple[tuple[int, int], ...]  # of each layer: its group, and its place in it
    readers: frozenset[int] = frozenset()  # layers that read another's keys and values, and write none

    @property
    def count(self) -> int:
        """Number of groups: blocks that 64 tokens take while none is given up."""
        return len(self.windows)

    @property
    def room(self) -> int:
        """Numbers of a token's keys for which the groups have room."""
        return self.size * self.count

    def layers(self, shape: Shape) -> int:
        """Number of layers of a shape for which a block has room."""
        return self.size // (shape[0] * shape[1])

    def blocks(self, tokens: int, piece: int) -> int:
        """Largest number of blocks that a sequence of `tokens` tokens has at once, of which `piece` are computed."""
        return sum(min(blocks_of(tokens), most_of(window, piece)) for window in self.windows)

    def longest(self, blocks: int, piece: int, most: int) -> int:
        """Tokens, up to `most`, of the longest sequence that so many blocks hold."""
        low, high = 0, blocks_of(most)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.blocks(middle * BLOCK, piece) <= blocks else (low, middle - 1)
        return min(most, low * BLOCK)

    def at_once(self, blocks: int, tokens: int, piece: int) -> int:
        """Number of sequences of `tokens` tokens that so many blocks hold, of which the last is being computed."""
        left = blocks - self.blocks(tokens, min(tokens, piece))
        return 1 + left // self.blocks(tokens, 1) if left >= 0 else 0


def most_of(window: int, piece: int) -> int:
    """Largest number of blocks with keys that `piece` consecutive tokens see within a window; without one, no bound."""
    return (window + piece - 2) // BLOCK + 2 if window else 1 << 40


def group_layers(layers: Sequence[Kept], length: int) -> LayerGroups:
    """Groups of layers that keep these keys and values, for sequences of up to `length` tokens.

    Of groups of every size those that take the least memory, room that no layer fills included; but no more groups than
    it takes to come near that.
    """
    own = [layer._replace(window=layer.window if layer.window < length else 0) for layer in layers]
    writing = [layer for layer in own if layer.source < 0]
    kinds, longest = Counter(writing), max(layer.window for layer in writing)
    tried = []
    if len({layer.shape for layer in writing}) == 1:
        window = longest if all(layer.window for layer in writing) else 0
        together = [layer._replace(window=window) for layer in own]
        tried.append(of_size(together, sum(layer.heads * layer.width for layer in writing)))
    if len(kinds) > 1:
        unit = math.lcm(*(kind.width for kind in kinds))  # a block of any group is whole heads of each
        sizes = {
            -(-number * kind.heads * kind.width // unit) * unit
            for kind, count in kinds.items()
            for number in range(1, count + 1)
        }
        least = max(kind.heads * kind.width for kind in kinds)
        tried += [of_size(own, size) for size in sorted(sizes) if size >= least]
    typical = min(length, _TYPICAL * longest or length)
    taken = [each.size * each.blocks(typical, 1) for each in tried]
    near = [number for number, memory in enumerate(taken) if memory <= _FEW * min(taken)]
    return tried[min(near, key=lambda number: (tried[number].count, taken[number]))]


def of_size(layers: Sequence[Kept], size: int) -> LayerGroups:
    """Groups of layers with one window and shape each, whose blocks have room for `size` numbers of a token's keys."""
    writing = [layer for layer in layers if layer.source < 0]
    firsts, made = dict[Kept, int](), list[Kept]()
    for kind, count in sorted(Counter(writing).items()):
        firsts[kind] = len(made)
        made += [kind] * -(-count // (size // (kind.heads * kind.width)))
    seen, places = Counter[Kept](), list[tuple[int, int]]()
    for layer in layers:
        if layer.source >= 0:
            places.append(places[layer.source])
            continue
        group, place = divmod(seen[layer], size // (layer.heads * layer.width))
        places.append((firsts[layer] + group, place))
        seen[layer] += 1
    readers = frozenset(number for number, layer in enumerate(layers) if layer.source >= 0)
    return LayerGroups(
        size, tuple(kind.window for kind in made), tuple(kind.shape for kind in made), tuple(places), readers
    )
