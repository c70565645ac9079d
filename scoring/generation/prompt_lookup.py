"""Prompt lookup: drafts of a sequence's next tokens, by what followed its newest ones where they occurred before.

Summaries, quotes and edits repeat their prompt, so that no other model is needed to draft them. How often the lookup
is right is measured on every token that comes, also while no drafts are made of it.
"""

from collections.abc import Sequence

import numpy as np

_LEAST = 2  # newest tokens that must have occurred before
_MOST = 16  # of them that are compared
_WINDOW = 1 << 16  # newest tokens that are searched: about 30 us
_MEMORY = 0.85  # weight of the measured share of right tokens, against the newest one
_MEASURED = 32  # of tokens that come at once, those that are measured


class PromptLookup:
    """Drafts one sequence's tokens. `rate` is the share of drafted tokens that came; the newest weigh most.

    `matched` is the number of newest tokens that occurred before; 0, and nothing foretold, if they are too few.
    """

    def __init__(self, ids: Sequence[int]) -> None:
        self.rate = 0.5  # as good as unknown
        self.matched = 0
        self.count = 0  # tokens known
        self.idle = 0  # of these, the newest ones that were not foretold
        self._ids = np.empty(0, np.int32)
        self._source = 0  # place of the token that is foretold next
        self.push(ids)

    @property
    def last(self) -> int:
        """The newest token."""
        return int(self._ids[self.count - 1])

    def push(self, tokens: Sequence[int]) -> None:
        """Take the sequence's next tokens."""
        if self.count + len(tokens) > len(self._ids):
            self._ids = np.concatenate((self._ids[: self.count], np.empty(self.count + len(tokens) + 256, np.int32)))
        self._ids[self.count : self.count + len(tokens)] = tokens
        for token in tokens if len(tokens) <= _MEASURED else ():
            self.count += 1
            self._take(token)
        if len(tokens) > _MEASURED:
            self.count += len(tokens)
            self._find()

    def draft(self, most: int) -> list[int]:
        """Return the next `most` tokens as predicted; none if nothing is."""
        if most < 1 or not self.matched:
            return []
        period = self.count - self._source
        found: list[int] = self._ids[self._source : min(self.count, self._source + most)].tolist()
        while len(found) < most:  # the source ends here: it goes on with what it foretold
            found.append(found[-period])
        return found

    def _take(self, token: int) -> None:
        """Compare a token with the one drafted in its place."""
        self.idle = 0 if self.matched else self.idle + 1
        if self.matched:
            right = bool(self._ids[self._source] == token)
            self.rate = _MEMORY * self.rate + (1 - _MEMORY) * right
            if right:
                self._source, self.matched = self._source + 1, self.matched + 1
                return
        self._find()

    def _find(self) -> None:
        """Find the longest, and of these the latest, earlier occurrence of the newest tokens."""
        ids = self._ids[max(0, self.count - _WINDOW) : self.count]
        ends = (ids[:-1] == ids[-1:]).nonzero()[0]
        matched = last = 0
        while len(ends) and matched < _MOST:
            matched, last = matched + 1, int(ends[-1])
            ends = ends[ends >= matched]
            ends = ends[ids[ends - matched] == ids[len(ids) - 1 - matched]]
        self.matched = matched if matched >= _LEAST else 0
        self._source = self.count - len(ids) + last + 1
