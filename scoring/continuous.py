"""Continuous batching: rows join and leave a decoder's slots between steps.

A step decodes first: one token for every row that is past its prompt. What is left of the step's budget of tokens is
filled with prompts, in pieces where they are long, several in one forward where they are short; so a long prompt
delays the rows beside it by no more than the budget. A row that has ended, failed or been cancelled leaves its slot at
the end of the step. Rows are taken in the order in which they came.

On a GPU a step is enqueued before the tokens of the one before are read: nothing waits on the host, and a row that
turns out to have ended costs one unused step of its slot.
"""

import heapq
import logging
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from scoring.chances import Chance, indices, later, measure, read
from scoring.decode import Decoder, Pending
from scoring.memory import give_back, is_short
from scoring.tasks.following import show_end
from scoring.tasks.slotted import Running, open_slot, take

if TYPE_CHECKING:
    from torch import Tensor

    from scoring.tasks.base import Done, Row
    from scoring.tasks.generation import Generative

logger = logging.getLogger("mii_azure.continuous")

#: Tokens of one step: about what a device computes in the time in which it reads the weights a few times.
_BUDGET = {"cpu": 128, "cuda": 1024}
_LEAST_PROMPT = 16  # of a step's tokens, however many rows decode


class Enqueued(NamedTuple):
    """Tokens on their way, with the chances of those whose rows ask for them."""

    batch: list[Running]
    tokens: Pending
    chances: Callable[[], dict[Running, Chance]]


class Continuous:
    """The rows on one decoder's slots; all calls from one thread.

    `capacity` bounds the tokens, prompts and answers, of the rows that are on slots at once.
    """

    def __init__(self, task: "Generative", decoder: Decoder, capacity: int) -> None:
        device = decoder.form.device.type
        self.decoder = decoder
        self.budget = _BUDGET[device]
        self._task = task
        self._capacity = capacity
        self._late = device == "cuda"
        self._free = list(range(decoder.slots))  # a heap: low slots first, so that those in use lie together
        self._filling: list[Running] = []
        self._decoding: list[Running] = []
        self._pending: list[Enqueued] = []

    @property
    def active(self) -> int:
        """Rows on slots."""
        return len(self._filling) + len(self._decoding)

    @property
    def cache(self) -> dict[str, int]:
        """Tokens whose keys and values rows hold on slots now, and most that may."""
        held = sum(self.decoder.lengths[running.slot] for running in (*self._filling, *self._decoding))
        return {"kv_tokens": held, "kv_capacity": min(self._capacity, self.decoder.slots * self.decoder.max_length)}

    def fits(self, row: "Row") -> bool:
        """Whether a row can be added now; always true when there is none."""
        taken = sum(running.row.footprint for running in (*self._filling, *self._decoding))
        return bool(self._free) and (not taken or taken + row.footprint <= self._capacity)

    def add(self, row: "Row", done: "Done") -> None:
        """Give a row that fits a slot; `done` is called when it ends, in a later `step`."""
        slot = heapq.heappop(self._free)
        try:
            running = open_slot(self._task, self.decoder, slot, row, done)
        except Exception as error:
            heapq.heappush(self._free, slot)
            done(error)
        else:
            self._filling.append(running)

    def step(self) -> None:
        """Advance every row by one token, and prompts by what the budget leaves; never raises."""
        enqueued = self._decode()
        enqueued += self._fill(max(_LEAST_PROMPT, self.budget - len(self._decoding)))
        due = self._pending if self._late else enqueued
        self._pending = enqueued if self._late else []
        for each in due:
            self._read(each)
        self._sweep()

    def _decode(self) -> list[Enqueued]:
        going = [running for running in self._decoding if running.enqueued < running.most]
        going.sort(key=lambda running: running.slot)
        stepped: list[Enqueued] = []
        for batch, pending in self._apart(going, lambda batch: self.decoder.step([r.slot for r in batch])):
            rows = [row for row, running in enumerate(batch) if running.details is not None]
            logits = self.decoder.last_logits(len(batch)) if rows else None
            stepped.append(
                self._enqueued(batch, pending, None if logits is None else logits[indices(rows, logits.device)])
            )
        for running in going:
            running.enqueued += 1
        return stepped

    def _fill(self, budget: int) -> list[Enqueued]:
        parts: list[tuple[Running, list[int]]] = []
        for running in self._filling:
            if budget <= 0:
                break
            ids = running.row.features["input_ids"][running.filled : running.filled + budget]
            budget -= len(ids)
            parts.append((running, ids))
        pieces = dict(parts)
        chosen = [running for running, _ in parts]
        filled = self._apart(
            chosen, lambda batch: self.decoder.prefill_many([(running.slot, pieces[running]) for running in batch])
        )
        for running in [running for batch, _ in filled for running in batch]:
            running.filled += len(pieces[running])
        for running, ids in parts:
            if is_short(running.failure) and len(ids) > _LEAST_PROMPT:
                self._take_smaller_pieces(running, len(ids))
        whole = [running for running in chosen if running.filled == running.row.tokens and not running.failure]
        self._filling = [running for running in self._filling if running not in whole]
        self._decoding += whole
        for running in whole:
            running.enqueued = 1
        return [each for _, each in self._apart(whole, self._sample)]

    def _sample(self, batch: list[Running]) -> Enqueued:
        """The first tokens of rows whose prompts are whole."""
        asking = [running.slot for running in batch if running.details is not None]
        logits = self.decoder.prompt_logits(asking) if asking else None
        return self._enqueued(batch, self.decoder.sample([running.slot for running in batch]), logits)

    def _enqueued(self, batch: list[Running], pending: Pending, logits: "Tensor | None") -> Enqueued:
        """Tokens just picked; with them the chances of those whose rows ask, from the logits of these rows."""
        if logits is None:
            return Enqueued(batch, pending, dict)
        asking = [running for running in batch if running.details is not None]
        most = [running.details or 0 for running in asking]
        try:
            chosen = self.decoder.state.tokens[indices([running.slot for running in asking], logits.device)]
            numbers = later(measure(logits, chosen, max(most)))
        except Exception as error:  # the tokens are there all the same: only these rows fail
            for running in asking:
                running.failure = error
            return Enqueued(batch, pending, dict)
        return Enqueued(batch, pending, lambda: dict(zip(asking, read(numbers(), most), strict=True)))

    def _take_smaller_pieces(self, running: Running, tokens: int) -> None:
        """A piece of a prompt ran out of memory by itself: try again with half of it, from now on for all."""
        running.failure = None
        self.budget = max(_LEAST_PROMPT, tokens // 2)
        logger.warning("%d tokens of a prompt ran out of memory; a step takes at most %d now", tokens, self.budget)

    def _apart(self, batch: list[Running], call: Callable[[list[Running]], Any]) -> list[tuple[list[Running], Any]]:
        """Call with all rows; if that fails, with each alone, so that only those that cannot be computed fail.

        Where memory was short, with half of them.
        """
        if not batch:
            return []
        try:
            return [(batch, call(batch))]
        except Exception as error:
            failed = error
        if is_short(failed):  # not within the handler, which would keep the memory of the failed call
            give_back(failed)
        if len(batch) == 1:
            batch[0].failure = failed
            return []
        size = len(batch) // 2 if is_short(failed) else 1
        logger.warning("a step of %d rows failed (%s); trying %d at once", len(batch), type(failed).__name__, size)
        parts = [batch[at : at + size] for at in range(0, len(batch), size)]
        return [found for part in parts for found in self._apart(part, call)]

    def _read(self, enqueued: Enqueued) -> None:
        batch = enqueued.batch
        try:
            tokens, chances = enqueued.tokens.tokens(), enqueued.chances()
        except Exception as error:
            for running in batch:
                running.failure = error
            return
        self._task.statistics.tokens(running.row for running in batch if not running.ended)
        for running, token in zip(batch, tokens, strict=True):
            try:
                take(self._task, running, token, chances.get(running))
            except Exception as error:
                running.failure = error

    def _sweep(self) -> None:
        """Answer the rows that are done, and free their slots."""
        everyone = [*self._decoding, *self._filling]
        over = [r for r in everyone if r.ended or r.failure or r.row.cancelled.is_set()]
        self._decoding = [running for running in self._decoding if running not in over]
        self._filling = [running for running in self._filling if running not in over]
        for running in over:
            heapq.heappush(self._free, running.slot)
            self.decoder.release(running.slot)
            if not running.failure:
                show_end(self._task, running.row, [running.output])
            running.done(running.failure or [running.output])


def run(task: "Generative", decoder: Decoder, rows: Sequence["Row"]) -> list[list[list[int]]]:
    """Generate for rows that nothing joins; per row its one answer's tokens, the end token included.

    Raises what the first row that failed raised.
    """
    slots = Continuous(task, decoder, decoder.slots * decoder.max_length)
    outputs: dict[int, Any] = {}
    waiting = deque(enumerate(rows))
    while waiting or slots.active:
        while waiting and slots.fits(waiting[0][1]):
            position, row = waiting.popleft()
            slots.add(row, partial(outputs.__setitem__, position))
        slots.step()
    for output in outputs.values():
        if isinstance(output, Exception):
            raise output
    return [outputs[position] for position in range(len(rows))]
