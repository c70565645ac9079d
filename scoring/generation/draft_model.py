"""Drafts by a small model with the same vocabulary, which follows the sequences in a decoder and slots of its own.

A draft's token is drawn with its sequence's own settings and random numbers, which depend on seed and position alone,
so that sampled tokens agree as often as the two models do. The share that was right is measured for each sequence,
which begins with that of those before; its drafts are as long as that share and the cost of a token make worth it, and
end for good where none is.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from scoring.decoder.decoder import Decoder
from scoring.engine.oom import free_memory
from scoring.errors import DeviceFull
from scoring.generation.sequence import RunningSequence

logger = logging.getLogger("mii_azure.scheduler")

_UNKNOWN = 0.75  # share of right tokens to begin with
_TRUST = 4  # tokens that it counts for: two wrong ones end it
_LEAST = 0.05  # weight of the newest token against all before, in a long sequence
_OVERALL = 0.02  # in the share of all sequences, with which new ones begin
_TRIED = 8  # tokens of the longest draft by which a new sequence is judged
_RETRIED = 8  # where that pays for no draft, one in so many new sequences is drafted all the same
_CATCH_UP = {"cpu": 128, "cuda": 4096}  # tokens of a sequence that a step's drafts may compute first


@dataclass(eq=False)
class _Followed:
    """A sequence as the draft model has it."""

    slot: int
    ids: list[int]  # its tokens, as far as they are known
    rate: float = _UNKNOWN  # share of drafted tokens that came; the newest weigh most
    compared: int = 0
    held: int = 0  # tokens in the draft model's cache
    drafted: list[int] = field(default_factory=list)

    def push(self, tokens: Sequence[int]) -> list[bool]:
        """Take the sequence's next tokens; compare those that were drafted, up to the first wrong one."""
        pairs = list(zip(self.drafted, tokens, strict=False))
        right = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        told = [True] * right + [False] * (right < len(pairs))
        for each in told:
            weight = max(_LEAST, 1 / (self.compared + _TRUST))
            self.rate += weight * (each - self.rate)
            self.compared += 1
        self.held = min(self.held, len(self.ids) + right)  # what follows is wrong, or not known to be right
        self.ids += tokens
        self.held = min(self.held, len(self.ids) - 1)  # the last one is computed for what follows it
        self.drafted = []
        return told


class DraftModel:
    """Drafts of a small model's `decoder`. A step with them takes `base`, and `cost` a token, in steps without."""

    def __init__(self, decoder: Decoder, base: float, cost: float, vocabulary: int) -> None:
        self._decoder, self._base, self._cost, self._vocabulary = decoder, base, cost, vocabulary
        self._most = decoder.max_length  # tokens of a sequence and its draft
        self._piece = _CATCH_UP[decoder.model.device.type]
        self._free = set(range(decoder.slots))
        self._followed: dict[RunningSequence, _Followed] = {}
        self._overall = _UNKNOWN  # share of right tokens in all sequences
        self._failed = False
        decoder.plan()

    def reach(self, running: RunningSequence, most: int) -> int:
        """Number of tokens, up to `most`, by which a step is fastest on average; 0: no draft pays.

        Source of the formula: Leviathan, Kalman, Matias, Fast Inference from Transformers via Speculative Decoding.
        """
        if self._failed or running.sampling.repetition_penalty != 1.0:
            return 0
        followed = self._followed.get(running)
        return self._length(followed.rate if followed else self._begin(running), most)

    def _begin(self, running: RunningSequence) -> float:
        """Share of right tokens that a new sequence is taken to have."""
        if self._length(self._overall, _TRIED):
            return self._overall
        return 0.0 if running.number % _RETRIED else _UNKNOWN

    def _length(self, rate: float, most: int) -> int:
        """Number of drafted tokens by which a step is fastest if this share of them is right."""
        rate = min(rate, 0.99)
        counts = range(1, most + 1)
        gains = [(1 - rate ** (count + 1)) / (1 - rate) / (self._base + count * self._cost) for count in counts]
        best = max(gains, default=0.0)
        return gains.index(best) + 1 if best > 1.0 else 0

    def drafts(
        self,
        newest: Mapping[RunningSequence, Sequence[int]],
        room: Callable[[RunningSequence, int], int],
    ) -> dict[RunningSequence, list[int]]:
        """Last token of each of these sequences and its draft; empty if the draft model's cache is full, or it fails.

        A failure ends all drafts. `newest`: tokens of each that are read but not appended yet. No more tokens than
        there is `room` for behind the place of the last one. Of sequences that are not among these nothing is kept.
        """
        try:
            self._follow(newest)
            wanted = {each: self.reach(each, room(each, len(self._followed[each].ids) - 1)) for each in newest}
            found = self._drafted([each for each, count in wanted.items() if count], wanted)
        except DeviceFull:  # it fits once other sequences have ended
            logger.warning("the draft model's cache is full; a step goes on without drafts")
            self._follow({})
            return {}
        except Exception as error:  # drafts are not needed to answer
            logger.exception("the draft model fails; steps go on without drafts")
            self._failed = True
            free_memory(error)
            return {}
        return {each: [self._followed[each].ids[-1], *found.get(each, ())] for each in newest}

    def _follow(self, newest: Mapping[RunningSequence, Sequence[int]]) -> None:
        for running in [each for each in self._followed if each not in newest]:
            slot = self._followed.pop(running).slot
            self._decoder.release(slot)
            self._free.add(slot)
        for running, tokens in newest.items():
            followed, prompt = self._followed.get(running), running.row.features["input_ids"]
            if followed is not None:
                for right in followed.push([*running.tokens[len(followed.ids) - len(prompt) :], *tokens]):
                    self._overall += _OVERALL * (right - self._overall)
                continue
            slot = self._free.pop()
            self._followed[running] = _Followed(slot, [*running.token_ids, *tokens], self._begin(running))
            self._decoder.open(slot, running.sampling)

    def _drafted(
        self, rows: Sequence[RunningSequence], wanted: Mapping[RunningSequence, int]
    ) -> dict[RunningSequence, list[int]]:
        """Draft the tokens wanted of these rows, but of those that the draft model has yet to catch up with."""
        most = max((wanted[running] for running in rows), default=0)
        ready = self._caught_up(self._fitting(rows, most))
        if not ready:
            return {}
        slots = [self._followed[running].slot for running in ready]
        picked = [self._decoder.sample(slots), *(self._decoder.step(slots) for _ in range(most - 1))]
        found = {}
        for running, *tokens in zip(ready, *(pending.tokens() for pending in picked), strict=True):
            followed = self._followed[running]
            followed.held = len(followed.ids) + most - 1
            known = takewhile(lambda token: token < self._vocabulary, tokens[: wanted[running]])
            followed.drafted = found[running] = list(known)
        return found

    def _fitting(self, rows: Sequence[RunningSequence], most: int) -> list[RunningSequence]:
        """Rows that the cache holds together with drafts of `most` tokens each; those already in it come first.

        Of all other sequences it keeps what it has room for besides.
        """
        tables, fitting = self._decoder.tables, []
        left = tables.pool.blocks
        for running in sorted(rows, key=lambda each: not self._followed[each].held):
            followed = self._followed[running]
            length = len(followed.ids) + most
            blocks = len(tables.blocks(followed.slot)) + tables.more(followed.slot, length, self._piece)
            if length <= self._most and blocks <= left:
                fitting.append(running)
                left -= blocks
        for running, followed in self._followed.items():
            if running in fitting:
                continue
            if (blocks := len(tables.blocks(followed.slot))) <= left:
                left -= blocks
            else:
                self._decoder.open(followed.slot, running.sampling)
                followed.held = 0
        return fitting

    def _caught_up(self, rows: Sequence[RunningSequence]) -> list[RunningSequence]:
        """Compute the tokens that the draft model lacks, within a step's bound; the sequences that lack none."""
        left, parts, ready = self._piece, [], []
        for running in rows:
            followed = self._followed[running]
            missing = followed.ids[followed.held : followed.held + left]
            if not missing:  # the bound is reached
                break
            self._decoder.lengths[followed.slot] = followed.held  # wound back: the prefill goes on from there
            parts.append((followed.slot, missing))
            followed.held += len(missing)
            left -= len(missing)
            if followed.held == len(followed.ids):
                ready.append(running)
        if parts:
            self._decoder.prefill_many(parts)
        return ready
