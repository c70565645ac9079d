"""Prefix cache: a tree of the blocks whose keys and values are known by their tokens, which prompts can reuse.

A node is a block's tokens after those of its ancestors, compared exactly; several blocks may hold the same. Only a
node of a whole block has children. The last token of a prompt is never matched, because its logits have to be
computed. Sequences share only if their salts are equal, which keeps callers apart: the time to an answer would reveal
that somebody else's prompt began alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from scoring.decoder.block_pool import BLOCK, BlockPool

MIN_PREFIX_TOKENS = 16  # fewer are not worth reusing

Tokens = tuple[int, ...]
Begin = tuple[str, Tokens]  # a salt and first tokens


@dataclass(eq=False)
class Node:
    """Tokens of one block, or of a part of one, after those of its ancestors; the root of a salt has none.

    A node without a parent that is no root cannot be found any more.
    """

    tokens: Tokens
    parent: "Node | None"
    blocks: dict[int, None] = field(default_factory=dict)  # all hold these tokens' keys and values
    children: dict[Tokens, "Node"] = field(default_factory=dict)
    alike: dict[Tokens, dict[Tokens, "Node"]] = field(default_factory=dict)  # children by their first tokens

    def start(self, tokens: Sequence[int]) -> Tokens:
        """Return a child's first tokens: as many as the shortest match has."""
        return tuple(tokens[: 1 if self.tokens else MIN_PREFIX_TOKENS])


class Match(NamedTuple):
    """Longest prefix found: nodes of whole blocks, then `rest` tokens of a last node's."""

    whole: list[Node]
    last: Node | None = None
    rest: int = 0

    @property
    def tokens(self) -> int:
        """Length of the prefix."""
        return len(self.whole) * BLOCK + self.rest


class PrefixCache:
    """Index of a pool's blocks by the tokens that they hold."""

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self._roots: dict[str, Node] = {}
        self._nodes: dict[int, Node] = {}  # by block

    def __contains__(self, block: int) -> bool:
        return block in self._nodes

    def insert(self, parent: Node | None, salt: str, tokens: Sequence[int], block: int) -> Node | None:
        """Record that a block holds these tokens after its parent's, or as the first ones; None if it is of no use.

        What was known of the block before is forgotten: its sequence goes on.
        """
        self.remove(block)
        key = tuple(tokens)
        if len(key) < MIN_PREFIX_TOKENS if parent is None else parent.parent is None:
            return None
        above = parent or self._roots.setdefault(salt, Node((), None))
        node = above.children.get(key)
        if node is None:
            node = above.children[key] = Node(key, above)
            above.alike.setdefault(above.start(key), {})[key] = node
        node.blocks[block] = None
        self._nodes[block] = node
        return node

    def match(self, ids: Sequence[int], salt: str) -> Match:
        """Find the longest prefix of a prompt that blocks hold, without its last token."""
        node, last = self._roots.get(salt), len(ids) - 1
        whole: list[Node] = []
        if node is None or last < MIN_PREFIX_TOKENS:
            return Match([])
        while (at := len(whole) * BLOCK) + BLOCK <= last:
            child = node.children.get(tuple(ids[at : at + BLOCK]))
            if child is None:
                break
            node = child
            whole.append(node)
        rest = tuple(ids[len(whole) * BLOCK : min(last, (len(whole) + 1) * BLOCK)])
        best, most = None, 0
        for tokens, child in node.alike.get(node.start(rest), {}).items() if rest else ():
            if (found := common_prefix(tokens, rest)) > most:
                best, most = child, found
        return Match(whole, best, most)

    def remove(self, block: int) -> None:
        """Forget what a block holds; if no other block holds it, its descendants cannot be found any more."""
        node = self._nodes.pop(block, None)
        if node is None:
            return
        del node.blocks[block]
        if not node.blocks:
            self._detach(node)

    def _detach(self, node: Node) -> None:
        if (parent := node.parent) is not None:
            start = parent.start(node.tokens)
            del parent.children[node.tokens], parent.alike[start][node.tokens]
            if not parent.alike[start]:
                del parent.alike[start]
        below = [node]
        while below:
            one = below.pop()
            below += one.children.values()
            for block in one.blocks:
                del self._nodes[block]
                self._pool.forget(block)
            one.parent, one.blocks, one.children, one.alike = None, {}, {}, {}


def begin(salt: str, tokens: Sequence[int]) -> Begin:
    """Lookup key: sequences that share a prefix have the same one."""
    return salt, tuple(tokens[:MIN_PREFIX_TOKENS])


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Number of leading tokens that two sequences share."""
    low, high = 0, min(len(a), len(b))
    if a[:high] == b[:high]:
        return high
    while high - low > 1:  # a[:low] == b[:low], a[:high] != b[:high]
        middle = (low + high) // 2
        low, high = (middle, high) if a[low:middle] == b[low:middle] else (low, middle)
    return low
