"""Chooses which rows of a step are drafted, and how far: where the measured share of right tokens pays for it.

Drafts are a draft model's if the decoder has one, else what a lookup finds. A draft is of tokens known so far, and on a
GPU these are read a step late; so they are waited for only where a row's drafts promise something. Where none does, and
where many rows share a step, steps are what they are without drafts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scoring.decoder.block_pool import BLOCK, blocks_of
from scoring.decoder.decoder import Decoder
from scoring.decoder.drafts import SIZES, SLOTS
from scoring.generation.draft_model import DraftModel
from scoring.generation.enqueued import UnderWay
from scoring.generation.prompt_lookup import PromptLookup
from scoring.generation.sequence import RunningSequence

#: What each row is fed: its last token, and a draft of those after it.
Drafts = dict[RunningSequence, list[int]]


@dataclass(frozen=True)
class Payoff:
    """Bounds within which drafts pay on a device."""

    sequences: int  # most rows of a step without drafts: with more, a step's products are no longer free
    fed: int  # most tokens of a step with drafts
    least: float  # share of right tokens below which a step with drafts costs more than it saves
    cost: float  # of one more token in a step, in steps: a drafted one is worth it if likelier than that
    base: float = 1.0  # time of a step with drafts beside its tokens', in steps
    fill: int = 1  # drafted tokens of a row that cost no more than one, since a step is padded


PAYOFFS = {"cuda": Payoff(SLOTS, SIZES[-1], 0.4, 0.03, 1.6, SIZES[0] - 1), "cpu": Payoff(2, 8, 0.5, 0.2)}
_MOST = 15  # tokens of one draft
_SURE, _NEAR = 0.75, 8  # a text that copies: share of right tokens, and most tokens since the last foretold one


class Drafting:
    """Drafts for the rows of one decoder's steps."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._pays = PAYOFFS[decoder.model.device.type]
        self._model: DraftModel | None = None
        if decoder.draft is not None:
            cost = decoder.draft_cost + self._pays.cost
            self._model = DraftModel(decoder.draft, self._pays.base, cost, decoder.model.vocabulary)

    def drafts(self, going: Sequence[RunningSequence], under_way: UnderWay, spare: bool) -> Drafts:
        """Draft tokens to feed to each of these rows, if any is worth it; else none. None beside open rows.

        With `spare` blocks a draft may end in the block after the one that the next token needs.
        """
        if not 0 < len(going) <= self._pays.sequences or not self._decoder.speculates:
            return {}
        if any(running.open for running in going):
            return {}
        if self._model is not None:
            return self._by_model(self._model, going, under_way, int(spare))
        for running in going:
            _follow(running)
        if not under_way.there and not any(self._promises(running) for running in going):
            return {}
        if (newest := under_way.newest(going)) is None:
            return {}
        most = min(_MOST, self._pays.fed // len(going) - 1)
        found = {running: self._fed(running, newest.get(running, ()), most, int(spare)) for running in going}
        return found if any(len(tokens) > 1 for tokens in found.values()) else {}

    def _by_model(self, model: DraftModel, going: Sequence[RunningSequence], under_way: UnderWay, spare: int) -> Drafts:
        """Tokens to feed by a draft model, which is followed by all rows that some draft may still pay for."""
        most = min(_MOST, self._pays.fed // len(going) - 1)
        if not any(model.reach(running, most) for running in going):
            return {}
        if (newest := under_way.newest(going)) is None:
            return {}
        fed = model.drafts(
            {running: newest.get(running, ()) for running in going},
            lambda running, last: min(most, self._room(running, last, spare)),
        )
        return fed if any(len(tokens) > 1 for tokens in fed.values()) else {}

    def _room(self, running: RunningSequence, last: int, spare: int) -> int:
        """Drafted tokens behind the one at `last` within the row's tokens and its blocks."""
        return min(running.most - running.enqueued - 1, (blocks_of(last + 1) + spare) * BLOCK - last - 1)

    def _fed(self, running: RunningSequence, newest: Sequence[int], most: int, spare: int) -> list[int]:
        """Last token of a row and its draft, within the row's tokens and its blocks."""
        lookup = running.lookup
        assert lookup is not None
        lookup.push(newest)
        last = lookup.count - 1
        return [lookup.last, *lookup.draft(min(most, self._room(running, last, spare), self._reach(running)))]

    def _promises(self, running: RunningSequence) -> bool:
        """Return True if the tokens under way are worth waiting for: they may go on a match, or begin one soon."""
        lookup = running.lookup
        return self._reach(running) > 0 or (lookup is not None and lookup.rate >= _SURE and lookup.idle <= _NEAR)

    def _reach(self, running: RunningSequence) -> int:
        """Drafted tokens that are worth their cost: the longer a match, the further it is trusted.

        None under a penalty, which depends on the tokens before.
        """
        lookup = running.lookup
        if (
            lookup is None
            or not lookup.matched
            or running.sampling.repetition_penalty != 1.0
            or lookup.rate < self._pays.least
        ):
            return 0
        far = math.log(self._pays.cost) / math.log(min(lookup.rate, 0.99))
        return min(int(far), max(lookup.matched, self._pays.fill))


def _follow(running: RunningSequence) -> None:
    """Have a row's lookup follow the tokens that were read."""
    prompt: list[int] = running.row.features["input_ids"]
    if running.lookup is None:
        running.lookup = PromptLookup([*prompt, *running.tokens])
    else:
        running.lookup.push(running.tokens[running.lookup.count - len(prompt) :])
