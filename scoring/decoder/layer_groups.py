"""Groups of layers that share a block table, so that layers that see a window keep no more than it.

A block of the cache holds 64 tokens' keys and values for the layers of one group, all of which see equally far. A
sequence has a table and blocks of its own in each group: those before a window go back, those of other groups stay. All
groups take their blocks from one pool, in which each has room for as many layers as the largest group has.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from scoring.decoder.block_pool import BLOCK, blocks_of

#: Tokens of one step: about as many as a device computes in the time it takes to read the weights a few times.
STEP_TOKENS = {"cpu": 128, "cuda": 8192}
_TYPICAL = 4  # windows: a sequence of that length is what groups are made for
_FEW = 1.05  # of the least memory that such a sequence can take; within it, the fewest groups


@dataclass(frozen=True)
class LayerGroups:
    """Groups of up to `size` layers, those that see all keys first."""

    size: int  # layers for which a block has room
    windows: tuple[int, ...]  # of each group, keys that a token sees, itself included; 0 is all
    places: tuple[tuple[int, int], ...]  # of each layer: its group, and its place in it

    @property
    def count(self) -> int:
        """Number of groups: blocks that 64 tokens take while none is given up."""
        return len(self.windows)

    @property
    def room(self) -> int:
        """Number of layers for which the groups have room."""
        return self.size * self.count

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


def group_layers(windows: Sequence[int], length: int) -> LayerGroups:
    """Groups of layers with these windows (0: all keys), for sequences of up to `length` tokens.

    Of groups of every size those that take the least memory, blocks that no layer fills included; but no more groups
    than it takes to come near that.
    """
    own = [window if window < length else 0 for window in windows]
    kinds = Counter(own)
    typical = min(length, _TYPICAL * max(own))
    together = LayerGroups(len(own), (0 if kinds[0] else max(own),), tuple((0, place) for place in range(len(own))))
    tried = [together]
    tried += [of_size(own, size) for size in range(1, max(kinds.values()) + 1)] if len(kinds) > 1 else []
    taken = [each.size * each.blocks(typical, 1) for each in tried]
    near = [number for number, memory in enumerate(taken) if memory <= _FEW * min(taken)]
    return tried[min(near, key=lambda number: (tried[number].count, taken[number]))]


def of_size(windows: Sequence[int], size: int) -> LayerGroups:
    """Groups of up to `size` layers with one window each."""
    firsts, made = dict[int, int](), list[int]()
    for window, layers in sorted(Counter(windows).items()):
        firsts[window] = len(made)
        made += [window] * -(-layers // size)
    seen, places = Counter[int](), []
    for window in windows:
        group, place = divmod(seen[window], size)
        places.append((firsts[window] + group, place))
        seen[window] += 1
    return LayerGroups(size, tuple(made), tuple(places))
