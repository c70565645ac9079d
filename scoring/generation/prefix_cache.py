"""Prefix cache: tokens whose keys and values a decoder's slots hold, which prompts beginning alike can reuse.

Tokens are compared exactly. A match is a slot and the number of leading tokens it shares; the last token of a prompt is
never among them, because its logits have to be computed. Sequences share only if their salts are equal, which
keeps callers apart: the time to an answer would reveal that somebody else's prompt began alike.
"""

from collections.abc import Callable, Sequence

from scoring.decoder.decoder import Decoder

MIN_PREFIX_TOKENS = 16  # fewer are not worth reusing

Begin = tuple[str, tuple[int, ...]]  # a salt and first tokens


class PrefixCache:
    """Index of slots by the tokens they hold; a slot opened since its tokens were inserted is ignored."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._held: dict[int, tuple[int, str, list[int]]] = {}  # the slot's count of openings, salt and tokens
        self._alike: dict[Begin, dict[int, None]] = {}  # slots by salt and first tokens

    def insert(self, slot: int, tokens: Sequence[int], salt: str = "") -> bool:
        """Record that a slot holds these tokens; False if they are too few to be of use."""
        self.evict(slot)
        if len(tokens) < MIN_PREFIX_TOKENS:
            return False
        self._held[slot] = (self._decoder.opened[slot], salt, list(tokens))
        self._alike.setdefault(begin(salt, tokens), {})[slot] = None
        return True

    def evict(self, slot: int) -> None:
        """Forget a slot's tokens."""
        _, salt, tokens = self._held.pop(slot, (0, "", []))
        key = begin(salt, tokens)
        if key in self._alike:
            self._alike[key].pop(slot, None)
            if not self._alike[key]:
                del self._alike[key]

    def match(self, ids: Sequence[int], usable: Callable[[int], bool], salt: str = "") -> tuple[int, int]:
        """The usable slot that shares the longest prefix with these tokens, and its length; (-1, 0) without one."""
        best, most = -1, MIN_PREFIX_TOKENS - 1
        if len(ids) <= MIN_PREFIX_TOKENS:
            return -1, 0
        for slot in self._alike.get(begin(salt, ids), ()):
            opened, _, tokens = self._held[slot]
            if usable(slot) and opened == self._decoder.opened[slot] and (found := common_prefix(tokens, ids)) > most:
                best, most = slot, found
        return (best, min(most, len(ids) - 1)) if best >= 0 else (-1, 0)


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
