"""Block tables: which blocks of the pool hold each slot's tokens, and which of them a new sequence can reuse.

Blocks hold a prefix once for all sequences that share it; a block of which only the beginning is shared is copied.
With room for every slot at full length on a CPU, tables never change (`in_place`): slot s has its own blocks in order,
so that attention reads its tokens where they lie, and prefixes are copied into them. Where all layers see a window of
keys only, a slot gives up the blocks before it: their contents are kept until others need the room, as an ended slot's.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from scoring.decoder.block_pool import BLOCK, BlockPool, blocks_of
from scoring.decoder.prefix_cache import Match, Node, PrefixCache
from scoring.errors import DeviceFull


@dataclass
class SlotBlocks:
    """Blocks of a slot's sequence; of one with a salt, its tokens as far as they are known, and where they are.

    The first `past` blocks are before its window, and no longer its own.
    """

    blocks: list[int] = field(default_factory=list)
    past: int = 0
    salt: str | None = None
    ids: list[int] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)  # of its whole blocks, as far as they can be found


class BlockTables:
    """Tables of `slots` sequences of up to `width` blocks. `copies` and `grown` collect what the device has to do.

    `window`: keys that a token sees, itself included, in every layer; 0 is all.
    """

    def __init__(self, slots: int, width: int, blocks: int, in_place: bool, window: int = 0) -> None:
        self.width = width
        self.window = window
        self.in_place = in_place
        self.pool = BlockPool(blocks)
        self.cache = PrefixCache(self.pool)
        self.copies: list[tuple[int, int]] = []  # source and target block
        self.grown: list[tuple[int, int, int]] = []  # slot, number of a block in it, block
        self._slots = [SlotBlocks() for _ in range(slots)]

    def blocks(self, slot: int) -> list[int]:
        """Blocks of a slot, in order; without those that it gave up."""
        own = self._slots[slot]
        return own.blocks[own.past :]

    def most(self, tokens: int, piece: int) -> int:
        """Largest number of blocks that a sequence of `tokens` tokens has at once, its prompt computed in pieces."""
        whole = blocks_of(tokens)
        return min(whole, blocks_of(self.window) + blocks_of(piece) + 1) if self.window else whole

    def advance(self, slot: int, length: int) -> None:
        """Give up the blocks that no token from position `length` on sees."""
        own = self._slots[slot]
        first = min(max(0, length - self.window + 1) // BLOCK, len(own.blocks)) if self.window else 0
        for block in own.blocks[own.past : first]:
            self.pool.drop(block, block in self.cache)
        own.past = max(own.past, first)

    def open(self, slot: int, ids: Sequence[int], salt: str | None) -> int:
        """Begin a sequence, with the longest cached prefix of its prompt; returns that prefix's length.

        Of a sequence that the slot has, what is known to be in its blocks is kept.
        """
        self.close(slot, self._slots[slot].ids)
        found = Match([]) if salt is None else self.cache.match(ids, salt)
        sources = [self._source(slot, number, node) for number, node in enumerate(self._chain(found))]
        for block in sources:
            self.pool.share(block)  # so that none is evicted for another's copy
        if found.last is not None and not self.in_place and not self.pool.available:
            last = sources.pop()
            self.pool.drop(last, last in self.cache)
            found = Match(found.whole)
        self._slots[slot] = SlotBlocks(salt=salt, ids=list(ids[: found.tokens]), nodes=list(found.whole))
        for number, source in enumerate(sources):
            whole = number < len(found.whole)
            if self._home(slot, number) == source:
                if not whole:
                    self.cache.remove(source)  # it is written from the middle on
                self._append(slot, source)
            elif whole and not self.in_place:
                self._append(slot, source)
            else:
                target = self._take(slot, number)
                self._append(slot, target)
                self.copies.append((source, target))
                self.pool.drop(source, source in self.cache)
        self.advance(slot, found.tokens)
        return found.tokens

    def match(self, ids: Sequence[int], salt: str) -> int:
        """Length of the longest cached prefix of a prompt."""
        return self.cache.match(ids, salt).tokens

    def choose(self, free: Collection[int], ids: Sequence[int], salt: str | None) -> int:
        """Choose one of the free slots, the first of which was left the longest ago, for a sequence."""
        if not self.in_place:
            return min(free)
        chain = self._chain(self.cache.match(ids, salt)) if salt is not None else []
        homes = {block // self.width for block in (chain[0].blocks if chain else ())}
        held = {slot: self._held(slot, chain) for slot in free if slot in homes}
        if held and max(held.values()):
            return max(held, key=held.__getitem__)
        empty = [slot for slot in free if not self.pool.is_idle(self._home(slot, 0))]
        return min(empty) if empty else next(iter(free))

    def missing(self, slot: int, length: int) -> int:
        """Number of blocks that a slot lacks to hold `length` tokens."""
        return max(0, blocks_of(length) - len(self._slots[slot].blocks))

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
        for number in range(len(self._slots[slot].blocks), blocks_of(length)):
            self._append(slot, self._take(slot, number))

    def written(self, slot: int, ids: Sequence[int]) -> None:
        """Record the tokens whose keys and values a slot holds after those already known."""
        own = self._slots[slot]
        if own.salt is None:
            return
        first = len(own.ids) // BLOCK
        own.ids += ids
        for number in range(first, blocks_of(len(own.ids))):
            above = own.nodes[number - 1] if 0 < number <= len(own.nodes) else None
            if (number and above is None) or number < own.past:
                return
            tokens = own.ids[number * BLOCK : (number + 1) * BLOCK]
            node = self.cache.insert(above, own.salt, tokens, own.blocks[number])
            if node is not None and len(tokens) == BLOCK:
                own.nodes.append(node)

    def close(self, slot: int, ids: Sequence[int] | None = None) -> None:
        """End a slot's sequence: with all its tokens, its blocks are kept for what they hold; else they are not."""
        own = self._slots[slot]
        if ids is not None:
            self.written(slot, ids[len(own.ids) :])
        self._slots[slot] = SlotBlocks()
        for block in reversed(
            own.blocks[own.past :]
        ):  # a later block is of no use without the earlier ones: it goes first
            if ids is None and self.pool.users(block) == 1:
                self.cache.remove(block)
            self.pool.drop(block, block in self.cache)

    def evict(self, most: int) -> None:
        """Free idle blocks, the least recently used first, until at most `most` are left."""
        while self.pool.idle > max(most, 0):
            self._evict(self.pool.oldest())

    def _evict(self, block: int) -> None:
        self.cache.remove(block)
        self.pool.forget(block)

    def _take(self, slot: int, number: int) -> int:
        home = self._home(slot, number)
        if home >= 0 and self.pool.is_idle(home):
            self._evict(home)
        if home < 0 and self.pool.available == self.pool.idle and self.pool.idle:
            self._evict(self.pool.oldest())
        return self.pool.take(home)

    def _home(self, slot: int, number: int) -> int:
        """The only block that a slot can have at this place, -1 if it can have any."""
        return slot * self.width + number if self.in_place else -1

    def _source(self, slot: int, number: int, node: Node) -> int:
        home = self._home(slot, number)
        return home if home in node.blocks else next(iter(node.blocks))

    def _held(self, slot: int, chain: Sequence[Node]) -> int:
        """Number of a chain's blocks that lie where a slot would have them."""
        return sum(self._home(slot, number) in node.blocks for number, node in enumerate(chain))

    def _chain(self, found: Match) -> list[Node]:
        return found.whole if found.last is None else [*found.whole, found.last]

    def _append(self, slot: int, block: int) -> None:
        blocks = self._slots[slot].blocks
        self.grown.append((slot, len(blocks), block))
        blocks.append(block)
