"""Shapes of heads that a model's layers attend with, and how a GPU's programs read keys of each."""

from typing import NamedTuple

from scoring.decoder.block_pool import BLOCK

_WIDE = 256  # numbers of a head up to which a program reads whole blocks
_LEAST_KEYS = 16  # that a matrix product takes
_HELD = 180 << 10  # bytes of keys, values and sums for which a program's registers have room


class Heads(NamedTuple):
    """Heads of a layer's attention: of queries, of keys and values, and numbers of each."""

    queries: int
    keys: int
    width: int

    @property
    def shared(self) -> int:
        """Heads of queries that read one head of keys."""
        return self.queries // self.keys

    @property
    def wide(self) -> int:
        """Width as kernels pad it."""
        return next_power_of_2(max(16, self.width))

    @property
    def product(self) -> int:
        """Numbers of a token's queries, keys and values."""
        return (self.queries + 2 * self.keys) * self.width


class KeyTile(NamedTuple):
    """Work of a program of a step's attention: queries that share a head of keys, by tiles of keys."""

    queries: int
    keys: int
    warps: int


def key_tile(heads: Heads, queries: int, itemsize: int) -> KeyTile:
    """Tile for so many queries and numbers of `itemsize` bytes: of wider heads as many keys as registers hold.

    Two tiles of keys and of values are in registers at once, and the queries and their sums in float32.
    """
    keys, wide = BLOCK, heads.wide
    while wide > _WIDE and keys > _LEAST_KEYS and (4 * keys * itemsize + queries * (4 + itemsize)) * wide > _HELD:
        keys //= 2
    return KeyTile(queries, keys, 8 if wide > 128 else 4)


def next_power_of_2(count: int) -> int:
    """Least power of two that is not below a count."""
    return 1 << max(0, count - 1).bit_length()
