"""Drafts: tokens fed behind a slot's last one before the model has picked them, and kept as far as it then does.

A token is kept exactly if it is the one picked from the logits before it, and the noise of a draw depends on seed and
position alone: sampled or not, a sequence is the same as without drafts.
"""

from collections.abc import Callable, Sequence

SIZES = (8, 16, 32)  # tokens fed in a step on a GPU, up to which it is padded
SLOTS = 8  # most slots of one

Fed = tuple[int, Sequence[int]]  # a slot; its last token, then the draft of those after it


def kept(fed: Sequence[Fed], picked: Sequence[int]) -> list[list[int]]:
    """Next tokens of each slot, at least one, from those picked after every token fed."""
    found, row = [], 0
    for _, tokens in fed:
        run = [picked[row]]
        while len(run) < len(tokens) and tokens[len(run)] == run[-1]:
            run.append(picked[row + len(run)])
        found.append(run)
        row += len(tokens)
    return found


class Runs:
    """Next tokens of each slot of a step with drafts; `read` waits for those picked, `then` is told the slots' own."""

    def __init__(
        self, fed: Sequence[Fed], read: Callable[[], Sequence[int]], then: Callable[[list[list[int]]], None]
    ) -> None:
        self._fed = fed
        self._read = read
        self._then = then
        self._found: list[list[int]] = []

    def runs(self) -> list[list[int]]:
        """Tokens of each slot in their order, at least one; waits for them."""
        if not self._found:
            self._found = kept(self._fed, self._read())
            self._then(self._found)
        return self._found
