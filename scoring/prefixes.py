"""Which tokens' keys and values a decoder's slots hold: a prompt that begins with them need not compute them again.

Tokens are compared exactly. A match is a slot and how many leading tokens it shares; the last token of a prompt is
never among them, because its logits have to be computed.
"""

from collections.abc import Callable, Sequence

from scoring.decode import Decoder

LEAST = 16  # tokens that are worth it


class Prefixes:
    """Slots by the tokens they hold; a slot that has been opened since holds nothing that is known here."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._held: dict[int, tuple[int, list[int]]] = {}  # how often the slot had been opened, and its tokens
        self._alike: dict[tuple[int, ...], dict[int, None]] = {}  # slots by their first tokens

    def note(self, slot: int, tokens: Sequence[int]) -> bool:
        """A slot holds these tokens now; False where they are too few to be of use."""
        self.forget(slot)
        if len(tokens) < LEAST:
            return False
        self._held[slot] = (self._decoder.opened[slot], list(tokens))
        self._alike.setdefault(tuple(tokens[:LEAST]), {})[slot] = None
        return True

    def forget(self, slot: int) -> None:
        """A slot's tokens are given up."""
        _, tokens = self._held.pop(slot, (0, []))
        key = tuple(tokens[:LEAST])
        if key in self._alike:
            self._alike[key].pop(slot, None)
            if not self._alike[key]:
                del self._alike[key]

    def match(self, ids: Sequence[int], usable: Callable[[int], bool]) -> tuple[int, int]:
        """The usable slot that holds most of the first of these tokens, and how many; (-1, 0) without one."""
        best, most = -1, LEAST - 1
        if len(ids) <= LEAST:
            return -1, 0
        for slot in self._alike.get(tuple(ids[:LEAST]), ()):
            opened, tokens = self._held[slot]
            if usable(slot) and opened == self._decoder.opened[slot] and (found := common(tokens, ids)) > most:
                best, most = slot, found
        return (best, min(most, len(ids) - 1)) if best >= 0 else (-1, 0)


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many leading tokens two sequences share."""
    low, high = 0, min(len(a), len(b))
    if a[:high] == b[:high]:
        return high
    while high - low > 1:  # a[:low] == b[:low], a[:high] != b[:high]
        middle = (low + high) // 2
        low, high = (middle, high) if a[low:middle] == b[low:middle] else (low, middle)
    return low
