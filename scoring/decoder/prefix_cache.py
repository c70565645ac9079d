"""Prefix cache: a tree of the blocks whose keys and values are known by their tokens, which prompts can reuse.

A node is a block's tokens after those of its ancestors, compared exactly; several blocks may hold the same. Only a
node of a whole block has children. The last token of a prompt is never matched, because its logits have to be
computed. Sequences share only if their salts are equal, which keeps callers apart: the time to an answer would reveal
that somebody else's prompt began alike.

Every group of layers has blocks of its own for a node's tokens. A prefix can be reused if the groups that see all keys
have all of its blocks, and those with a window the ones that the next token sees. A node lasts as long as its blocks of
the former, or where there are none, of the first group.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from scoring.decoder.block_pool import BLOCK, BlockPool

MIN_PREFIX_TOKENS = 16  # fewer are not worth reusing
LOOKED_AT = 16  # prefixes that go on alike, on either side of a prompt's place among them

Tokens = tuple[int, ...]
Begin = tuple[str, Tokens]  # a salt and first tokens


@dataclass(eq=False)
class Node:
    """Tokens of one block, or of a part of one, after those of its ancestors; the root of a salt has none.

    A node without a parent that is no root cannot be found any more.
    """

    tokens: Tokens
    parent: "Node | None"
    blocks: list[dict[int, None]] = field(default_factory=list)  # of each group, all that hold their keys and values
    children: dict[Tokens, "Node"] = field(default_factory=dict)
    order: list[Tokens] = field(default_factory=list)  # the children's tokens, sorted
    salt: str = ""  # of a root

    def closest(self, tokens: Tokens, groups: Sequence[int] = ()) -> tuple["Node | None", int]:
        """Return the child that shares the most leading tokens with these, and their number; None if none shares any.

        It has blocks of all `groups`. Sorted, children share the less the further they stand from the place that the
        tokens would have; on either side, few are looked at.
        """
        best, most = None, 0
        at = bisect_left(self.order, tokens)
        for near in (reversed(self.order[max(0, at - LOOKED_AT) : at]), self.order[at : at + LOOKED_AT]):
            for own in near:
                if (found := common_prefix(own, tokens)) <= most:
                    break
                if all(self.children[own].blocks[group] for group in groups):
                    best, most = self.children[own], found
                    break
        return best, most

    def add(self, child: "Node") -> None:
        """Make a node a child of this one."""
        self.children[child.tokens] = child
        insort(self.order, child.tokens)

    def remove(self, child: "Node") -> None:
        """Forget a child."""
        del self.children[child.tokens], self.order[bisect_left(self.order, child.tokens)]


class Match(NamedTuple):
    """Longest prefix found: nodes of whole blocks, then `rest` tokens of a last node's."""

    whole: list[Node]
    last: Node | None = None
    rest: int = 0

    @property
    def tokens(self) -> int:
        """Length of the prefix."""
        return len(self.whole) * BLOCK + self.rest

    @property
    def chain(self) -> list[Node]:
        """All nodes, in order."""
        return self.whole if self.last is None else [*self.whole, self.last]


class PrefixCache:
    """Index of a pool's blocks by the tokens that they hold, of groups of layers that see these `windows` (0: all)."""

    def __init__(self, pool: BlockPool, windows: Sequence[int] = (0,)) -> None:
        self._pool = pool
        self.lasting = [group for group, window in enumerate(windows) if not window] or [0]
        self._passing = [(group, window) for group, window in enumerate(windows) if group not in self.lasting]
        self._groups = len(windows)
        self._roots: dict[str, Node] = {}
        self._nodes: dict[int, tuple[Node, int]] = {}  # node and group by block

    def __contains__(self, block: int) -> bool:
        return block in self._nodes

    def insert(self, parent: Node | None, salt: str, tokens: Sequence[int], blocks: Sequence[int]) -> Node | None:
        """Record that blocks, one a group, hold these tokens after the parent's or as the first; None if of no use.

        -1 stands for a block that a group with a window gave up. What was known of the blocks before is forgotten:
        their sequence goes on.
        """
        for block in blocks:
            self.remove(block)
        key = tuple(tokens)
        if len(key) < MIN_PREFIX_TOKENS if parent is None else parent.parent is None:
            return None
        above = parent or self._roots.setdefault(salt, Node((), None, salt=salt))
        node = above.children.get(key)
        if node is None:
            node = Node(key, above, [{} for _ in range(self._groups)])
            above.add(node)
        for group, block in enumerate(blocks):
            if block >= 0:
                node.blocks[group][block] = None
                self._nodes[block] = node, group
        return node

    def match(self, ids: Sequence[int], salt: str, whole_only: bool = False) -> Match:
        """Find the longest prefix of a prompt that blocks hold, without its last token; of whole blocks if asked."""
        root, last = self._roots.get(salt), len(ids) - 1
        whole: list[Node] = []
        if root is None or last < MIN_PREFIX_TOKENS:
            return Match([])
        node = root
        while (at := len(whole) * BLOCK) + BLOCK <= last:
            child = node.children.get(tuple(ids[at : at + BLOCK]))
            if child is None:
                break
            node = child
            whole.append(node)
        return self._within_windows(ids, whole, root, whole_only)

    def _within_windows(self, ids: Sequence[int], whole: list[Node], root: Node, whole_only: bool) -> Match:
        """Cut a prefix until windows have what the next token sees, and add the part of a block that goes on alike."""
        while True:
            found = Match(whole) if whole_only else self._with_part(ids, whole, root)
            if (lost := self._lost(found)) < 0:
                return found
            whole = whole[:lost]

    def _with_part(self, ids: Sequence[int], whole: list[Node], root: Node) -> Match:
        """Prefix of whole blocks, and the tokens of one more that go on like the prompt."""
        at = len(whole) * BLOCK
        rest = tuple(ids[at : min(len(ids) - 1, at + BLOCK)])
        last, most = (whole[-1] if whole else root).closest(rest, [group for group, _ in self._passing])
        return Match(whole) if most < (1 if whole else MIN_PREFIX_TOKENS) else Match(whole, last, most)

    def _lost(self, found: Match) -> int:
        """Number of the last block that some group lacks of those that the token after a prefix sees; -1 if none."""
        chain, lost = found.chain, -1
        for group, window in self._passing:
            first = first_seen(window, found.tokens)
            missing = (number for number in range(len(chain) - 1, first - 1, -1) if not chain[number].blocks[group])
            lost = max(lost, next(missing, -1))
        return lost

    def remove(self, block: int) -> None:
        """Forget what a block holds; if its node does not outlast it, its descendants cannot be found any more."""
        node, group = self._nodes.pop(block, (None, 0))
        if node is None:
            return
        del node.blocks[group][block]
        if not node.blocks[group] and group in self.lasting:
            self._detach(node)

    def _detach(self, node: Node) -> None:
        above = node.parent
        if above is not None:
            above.remove(node)
            if above.parent is None and not above.children:
                del self._roots[above.salt]
        below = [node]
        while below:
            one = below.pop()
            below += one.children.values()
            for block in (block for own in one.blocks for block in own):
                del self._nodes[block]
                self._pool.forget(block)
            one.parent, one.blocks, one.children, one.order = None, [], {}, []


def first_seen(window: int, tokens: int) -> int:
    """Number of the first block that the token after so many sees within a window; 0: all."""
    return max(0, tokens - window + 1) // BLOCK if window else 0


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
