"""Time that a chunk of prompts takes on a device, measured when it warms up, by which pieces of prompts are sized."""

from dataclasses import dataclass
from math import sqrt


@dataclass(frozen=True)
class PromptCost:
    """Milliseconds per token of a chunk, for its products, and per token and key that it sees, for its attention."""

    token: float
    key: float = 0.0

    def ms(self, position: int, count: int) -> float:
        """Milliseconds of a part of `count` tokens from a position on."""
        return count * (self.token + self.key * (position + count / 2))

    def most(self, position: int, ms: float) -> int:
        """Most tokens of a part from a position on that take no longer."""
        each = self.token + self.key * position
        # count * each + key / 2 * count ** 2 = ms, solved without a difference of large numbers
        return int(2 * ms / (each + sqrt(each * each + 2 * self.key * ms)))


def fitted(count: int, near: float, far: float, distance: int) -> PromptCost:
    """Cost by the milliseconds of two chunks of `count` tokens, at position 0 and at a `distance`."""
    key = max(0.0, far - near) / (count * distance) if distance else 0.0
    return PromptCost(max(near / count - key * count / 2, 0.1 * near / count), key)
