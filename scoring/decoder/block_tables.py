"""Block tables: which blocks of the pool hold each slot's tokens, and which of them a new sequence can reuse.

Blocks hold a prefix once for all sequences that share it; a block of which only the beginning is shared is copied.
With room for every slot at full length on a CPU, tables never change (`in_place`): slot s has its own blocks in order,
so that attention reads its tokens where they lie, and prefixes are copied into them. A slot has a table and blocks in
every group of layers, and in those with a window gives up the blocks before it: their contents are kept until others
need the room, as an ended slot's.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from scoring.decoder.block_pool import BLOCK, BlockPool, blocks_of
from scoring.decoder.layer_groups import most_of
from scoring.decoder.prefix_cache import Match, Node, PrefixCache, first_seen
from scoring.errors import DeviceFull

_NEVER = 1 << 60  # tokens


@dataclass
class SlotBlocks:
    """Blocks of a slot's sequence by group; of one with a salt, its tokens as far as they are known, and their nodes.

    Of each group, the first `past` blocks are before its window, and no longer the slot's own.
    """

    blocks: list[list[int]]
    past: list[int]
    due: int = 0  # length from which on there are more of these
    salt: str | None = None
    ids: list[int] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)  # of its whole blocks, as far as they can be found

    def own(self) -> list[int]:
        """Blocks that are still the slot's, group after group."""
        pairs = zip(self.blocks, self.past, strict=True)
        return [block for blocks, past in pairs for block in blocks[past:]]


class BlockTables:
    """Tables of `slots` sequences of up to `width` blocks. `copies` and `grown` collect what the device has to do.

    `windows`: of each group of layers, keys that a token sees, itself included; 0 is all.
    """

    def __init__(self, slots: int, width: int, blocks: int, in_place: bool, windows: Sequence[int] = (0,)) -> None:
        self.width = width
        self.windows = windows
        self.in_place = in_place
        self.pool = BlockPool(blocks)
        self.cache = PrefixCache(self.pool, windows)
        self.copies: list[tuple[int, int, int]] = []  # group, source and target block
        self.grown: list[tuple[int, int, int, int]] = []  # group, slot, number of a block in it, block
        self._groups = range(len(windows))
        # Groups with one window always have as many blocks: the first of them, the window, and their number.
        self._kinds = [(windows.index(window), window, windows.count(window)) for window in sorted(set(windows))]
        self._slots = [self._empty() for _ in range(slots)]

    def _empty(self) -> SlotBlocks:
        return SlotBlocks([[] for _ in self._groups], [0 for _ in self._groups])

    def blocks(self, slot: int) -> list[int]:
        """Blocks of a slot, group after group, each in order; without those that it gave up."""
        return self._slots[slot].own()

    def room(self, slot: int) -> int:
        """Tokens for which a slot has blocks, those of them included that it gave up."""
        return BLOCK * len(self._slots[slot].blocks[0])

    def more(self, slot: int, length: int, piece: int) -> int:
        """Number of blocks beyond its own that a slot has at most until it holds `length` tokens.

        Of a prompt, `piece` tokens are computed at once.
        """
        own, whole, more = self._slots[slot], blocks_of(length), 0
        for group, window, alike in self._kinds:
            has = len(own.blocks[group])
            lacks = whole - has
            if window:
                lacks = min(lacks, most_of(window, piece) - has + own.past[group])
            if lacks > 0:
                more += lacks * alike
        return more

    def advance(self, slot: int, length: int) -> None:
        """Give up the blocks that no token from position `length` on sees."""
        own = self._slots[slot]
        if length < own.due:
            return
        own.due = _NEVER
        for group, window in enumerate(self.windows):
            if not window:
                continue
            blocks, past = own.blocks[group], own.past[group]
            first = max(past, min(first_seen(window, length), len(blocks)))
            for block in blocks[past:first]:
                self.pool.drop(block, block in self.cache)
            own.past[group] = first
            own.due = min(own.due, (first + 1) * BLOCK + window - 1)

    def open(self, slot: int, ids: Sequence[int], salt: str | None) -> int:
        """Begin a sequence, with the longest cached prefix of its prompt; returns that prefix's length.

        Of a sequence that the slot has, what is known to be in its blocks is kept.
        """
        self.close(slot, self._slots[slot].ids)
        found = Match([]) if salt is None else self.cache.match(ids, salt)
        sources = self._taken(slot, found)
        if found.last is not None and not self.in_place and self.pool.available < len(self.windows):
            self._leave(sources)  # nothing is left to copy its last blocks to
            found = self.cache.match(ids, salt or "", whole_only=True)
            sources = self._taken(slot, found)
        own = self._slots[slot] = self._empty()
        own.salt, own.ids, own.nodes = salt, list(ids[: found.tokens]), list(found.whole)
        for group, blocks in enumerate(sources):
            own.past[group] = len(found.chain) - len(blocks)
            own.blocks[group] = [-1] * own.past[group]
            for number, source in enumerate(blocks, own.past[group]):
                self._give(slot, group, source, number < len(found.whole))
        self.advance(slot, found.tokens)
        return found.tokens

    def _taken(self, slot: int, found: Match) -> list[list[int]]:
        """Blocks of each group that hold a prefix, as far as they are needed, each with one more user."""
        sources = []
        for group, window in enumerate(self.windows):
            # What outlasts windows is used from its first token on, so that it is not the next to be evicted.
            first = 0 if group in self.cache.lasting else first_seen(window, found.tokens)
            numbers = range(min(first, len(found.chain)), len(found.chain))
            sources.append([self._source(slot, group, number, found.chain[number]) for number in numbers])
        for block in (block for blocks in sources for block in blocks):
            self.pool.share(block)
        return sources

    def _leave(self, sources: Sequence[Sequence[int]]) -> None:
        for block in (block for blocks in sources for block in blocks):
            self.pool.drop(block, block in self.cache)

    def _give(self, slot: int, group: int, source: int, whole: bool) -> None:
        """Make a block a slot's next one, or a copy of it if it has another place or is shared in part."""
        number = len(self._slots[slot].blocks[group])
        if self._home(slot, group, number) == source:
            if not whole:
                self.cache.remove(source)  # it is written from the middle on
            self._append(slot, group, source)
        elif whole and not self.in_place:
            self._append(slot, group, source)
        else:
            target = self._take(slot, group, number)
            self._append(slot, group, target)
            self.copies.append((group, source, target))
            self.pool.drop(source, source in self.cache)

    def match(self, ids: Sequence[int], salt: str) -> int:
        """Length of the longest cached prefix of a prompt."""
        return self.cache.match(ids, salt).tokens

    def choose(self, free: Collection[int], ids: Sequence[int], salt: str | None) -> int:
        """Choose one of the free slots, the first of which was left the longest ago, for a sequence."""
        if not self.in_place:
            return min(free)
        chain = self.cache.match(ids, salt).chain if salt is not None else []
        homes = {block // self.width for block in (chain[0].blocks[0] if chain else ())}
        held = {slot: self._held(slot, chain) for slot in free if slot in homes}
        if held and max(held.values()):
            return max(held, key=held.__getitem__)
        empty = [slot for slot in free if not self.pool.is_idle(self._home(slot, 0, 0))]
        return min(empty) if empty else next(iter(free))

    def missing(self, slot: int, length: int) -> int:
        """Number of blocks that a slot lacks to hold `length` tokens."""
        blocks = self._slots[slot].blocks
        return max(0, blocks_of(length) - len(blocks[0])) * len(blocks)

    def check(self, lengths: Iterable[tuple[int, int]]) -> None:
        """Raise DeviceFull if the slots cannot all hold their `lengths`."""
        lacking = sum(self.missing(slot, length) for slot, length in lengths)
        if lacking > self.pool.available:
            raise DeviceFull(
                f"The sequences need {lacking} more blocks of {BLOCK} tokens; {self.pool.available} of"
                f" {self.pool.blocks} are not in use.",
                "Send the request again later.",
            )

    def reserve(self, slot: int, length: int) -> None:
        """Give a slot blocks for `length` tokens; raises DeviceFull."""
        for number in range(len(self._slots[slot].blocks[0]), blocks_of(length)):
            for group in self._groups:
                self._append(slot, group, self._take(slot, group, number))

    def written(self, slot: int, ids: Sequence[int]) -> None:
        """Record the tokens whose keys and values a slot holds after those already known."""
        own = self._slots[slot]
        if own.salt is None:
            return
        first = len(own.ids) // BLOCK
        own.ids += ids
        for number in range(first, blocks_of(len(own.ids))):
            above = own.nodes[number - 1] if 0 < number <= len(own.nodes) else None
            if (number and above is None) or any(number < own.past[group] for group in self.cache.lasting):
                return
            tokens = own.ids[number * BLOCK : (number + 1) * BLOCK]
            pairs = zip(own.blocks, own.past, strict=True)
            blocks = [blocks[number] if number >= past else -1 for blocks, past in pairs]
            node = self.cache.insert(above, own.salt, tokens, blocks)
            if node is not None and len(tokens) == BLOCK:
                own.nodes.append(node)

    def close(self, slot: int, ids: Sequence[int] | None = None) -> None:
        """End a slot's sequence: with all its tokens, its blocks are kept for what they hold; else they are not."""
        own = self._slots[slot]
        if ids is not None:
            self.written(slot, ids[len(own.ids) :])
        self._slots[slot] = self._empty()
        for number in range(len(own.blocks[0]) - 1, -1, -1):  # a later block is of no use without the earlier ones
            for blocks, past in zip(own.blocks, own.past, strict=True):
                if number < past:
                    continue
                if ids is None and self.pool.users(blocks[number]) == 1:
                    self.cache.remove(blocks[number])
                self.pool.drop(blocks[number], blocks[number] in self.cache)

    def evict(self, most: int) -> None:
        """Free idle blocks, the least recently used first, until at most `most` are left."""
        while self.pool.idle > max(most, 0):
            self._evict(self.pool.oldest())

    def _evict(self, block: int) -> None:
        self.cache.remove(block)
        self.pool.forget(block)

    def _take(self, slot: int, group: int, number: int) -> int:
        home = self._home(slot, group, number)
        if home >= 0 and self.pool.is_idle(home):
            self._evict(home)
        if home < 0 and self.pool.available == self.pool.idle and self.pool.idle:
            self._evict(self.pool.oldest())
        return self.pool.take(home)

    def _home(self, slot: int, group: int, number: int) -> int:
        """The only block that a slot can have at this place, -1 if it can have any."""
        return (group * len(self._slots) + slot) * self.width + number if self.in_place else -1

    def _source(self, slot: int, group: int, number: int, node: Node) -> int:
        home = self._home(slot, group, number)
        return home if home in node.blocks[group] else next(iter(node.blocks[group]))

    def _held(self, slot: int, chain: Sequence[Node]) -> int:
        """Number of a chain's blocks that lie where a slot would have them, in the first group."""
        return sum(self._home(slot, 0, number) in node.blocks[0] for number, node in enumerate(chain))

    def _append(self, slot: int, group: int, block: int) -> None:
        blocks = self._slots[slot].blocks[group]
        self.grown.append((group, slot, len(blocks), block))
        blocks.append(block)
