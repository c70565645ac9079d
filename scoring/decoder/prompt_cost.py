"""Time that a chunk of prompts takes on a device, measured when it warms up, by which pieces of prompts are sized."""

from dataclasses import dataclass, replace
from math import sqrt

from scoring.decoder.chunk_size import SPANS

_LAUNCHED_MS = 60.0  # below it, only chunks that graphs hold: others keep the host busy for as long, kernel by kernel


@dataclass(frozen=True)
class Piece:
    """Milliseconds of a chunk of up to `tokens` behind a long prefix, and more by keys of it, in spans and not."""

    tokens: int
    base: float
    key: float
    spanned: float


@dataclass(frozen=True)
class PromptCost:
    """Milliseconds per token of a chunk, for its products, and per token and key that it sees, for its attention.

    `spanned` is that of keys in whole spans of `span` keys before the chunk; span 0: there are none. `pieces` are
    chunks behind spans that are too short for it, shortest first.
    """

    token: float
    key: float = 0.0
    spanned: float = 0.0
    span: int = 0
    pieces: tuple[Piece, ...] = ()

    def ms(self, position: int, count: int) -> float:
        """Milliseconds of a part of `count` tokens from a position on."""
        piece = next((piece for piece in self.pieces if piece.tokens >= count), None)
        if piece is not None and position >= self.span:
            left = position % self.span
            return piece.base + piece.key * left + piece.spanned * (position - left)
        return count * (self._each(position) + self.key * count / 2)

    def most(self, position: int, ms: float) -> int:
        """Most tokens of a part from a position on that take no longer; behind spans a power of two or the shortest."""
        each = self._each(position)
        # count * each + key / 2 * count ** 2 = ms, solved without a difference of large numbers
        found = int(2 * ms / (each + sqrt(each * each + 2 * self.key * ms)))
        if not self.pieces or position < self.span:
            return found
        least = self.pieces[0].tokens
        if ms < _LAUNCHED_MS:
            found = min(found, self.pieces[-1].tokens)
        found = max(least, 1 << max(0, found.bit_length() - 1))
        while found > least and self.ms(position, found) > ms:
            found //= 2
        return found

    def with_spans(self, count: int, keys: int, ms: float) -> "PromptCost":
        """Cost with that of spans too, by the milliseconds of a chunk of `count` tokens after spans of `keys`."""
        return replace(self, spanned=max(0.0, ms - self.ms(0, count)) / (count * keys), span=min(SPANS))

    def _each(self, position: int) -> float:
        """Milliseconds of a token that sees the keys before a position."""
        spanned = position - position % self.span if self.span else 0
        return self.token + self.key * (position - spanned) + self.spanned * spanned


def fitted(count: int, near: float, far: float, distance: int) -> PromptCost:
    """Cost by the milliseconds of two chunks of `count` tokens, at position 0 and at a `distance`."""
    key = max(0.0, far - near) / (count * distance) if distance else 0.0
    return PromptCost(max(near / count - key * count / 2, 0.1 * near / count), key)
