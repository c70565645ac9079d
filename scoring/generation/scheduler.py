"""Continuous batching: rows join and leave a decoder's slots between steps.

A step decodes first: one token for every row that is past its prompt. The rest of the step's token budget is
filled with prompts: long ones in chunks, several short ones in one forward; so a long prompt
delays the rows beside it by no more than the budget. On a GPU, which knows how long its prompts take, chunks are
shorter still, for as long as the rows that decode can wait. A row that has ended, failed or been cancelled leaves its
slot at the end of the step. Rows are taken in the order in which they came, but a long prompt leaves half of a step's
time to those behind it.

A slot is a row of the batch; memory is counted in blocks of the decoder's cache, which rows whose prompts begin alike
share. Blocks keep their keys and values until others need them: a row whose prompt begins with their tokens computes
only the rest, and of rows that came together with one prefix, the others wait for the first. Rows are admitted with
blocks for half of the tokens they may generate. If that proves too little, the youngest is preempted, and resumes from
its prompt and its tokens when there is room again; random numbers depend only on seed and position, so its tokens are
the same.

On a GPU a step is enqueued before the previous one's tokens are read: the GPU never waits for the host, and a row that
turns out to have ended costs one wasted step of its slot, or two beside rows whose tokens masks bind. Only a step with
drafts needs the tokens before it.
"""

import logging
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from scoring.decoder.block_pool import BLOCK, blocks_of
from scoring.decoder.chunk_size import chunk_within
from scoring.decoder.decoder import Decoder
from scoring.decoder.generic.recurrent import in_pieces
from scoring.decoder.layer_groups import STEP_TOKENS
from scoring.decoder.prefix_cache import MIN_PREFIX_TOKENS, Begin, begin, common_prefix
from scoring.decoder.prompt_cost import PromptCost
from scoring.engine.oom import free_memory, is_out_of_memory
from scoring.engine.row import Done, Row
from scoring.generation.block_budget import BlockBudget
from scoring.generation.drafting import Drafting, Drafts
from scoring.generation.enqueued import SLOW_MS, Asking, Enqueued, Tokens, UnderWay, measured, single
from scoring.generation.sequence import RunningSequence, make_sequence
from scoring.generation.streaming import show_end
from scoring.generation.text_generator import TextGenerator

logger = logging.getLogger("mii_azure.scheduler")

_PIECE_MS = 34.0  # of prompts in one step, if the decoder knows: with its own step, a stream waits less than 50 ms
_ALONE_MS = 300.0  # if nobody decodes: of two such steps at most, which are under way, a newcomer has to wait
_LEAST_PROMPT = 16  # tokens of a step reserved for prompts, however many rows decode


class Scheduler:
    """Scheduler of the rows on one decoder's slots; all calls from one thread.

    `capacity` bounds the tokens of prompts and answers that slots hold at once, in whole blocks of each row, as if each
    layer kept all; a single row may have more. Without `reuse` every prompt is computed whole.
    """

    def __init__(self, task: TextGenerator, decoder: Decoder, capacity: int, reuse: bool = True) -> None:
        device = decoder.model.device.type
        self.decoder = decoder
        self.budget = STEP_TOKENS[device]
        self._task = task
        self._capacity = min(capacity, decoder.capacity)
        self._room = BlockBudget(decoder, capacity, self._piece)
        self._late = device == "cuda"
        self._free_slots = dict.fromkeys(range(decoder.slots))  # that which was left the longest ago first
        self._reuse = reuse and decoder.recurrent is None  # whose states are of a whole sequence, not of a prefix
        self._in_pieces = in_pieces(decoder.recurrent)  # else a prompt is computed whole in one step
        self._drafting = Drafting(decoder)
        self._preempted: deque[RunningSequence] = deque()  # rows that lost their slots, the oldest first
        self._added = 0
        self._prefilling: list[RunningSequence] = []
        self._decoding: list[RunningSequence] = []
        self._under_way = UnderWay()
        self._open: list[RunningSequence] = []  # rows whose next token is to be picked once the others are known
        decoder.plan()

    @property
    def active(self) -> int:
        """Number of rows on slots, and of preempted rows."""
        return len(self._prefilling) + len(self._decoding) + len(self._preempted)

    @property
    def cache(self) -> dict[str, int]:
        """Tokens that active rows hold in the KV cache, shared ones once, parts of those given up; and their bound."""
        slots, groups = [running.slot for running in (*self._prefilling, *self._decoding)], self.decoder.groups.count
        whole = groups * sum(blocks_of(self.decoder.lengths[slot]) for slot in slots)
        less = max(0, whole - self.decoder.tables.pool.used)  # before windows, or shared and counted for another
        held = sum(self.decoder.lengths[slot] for slot in slots) - less * BLOCK // groups
        return {"kv_tokens": held, "kv_capacity": self._capacity}

    def fits(self, row: Row) -> bool:
        """Return True if a row can be added now; always if no row is active."""
        return not self._preempted and self._has_room(row.tokens, row.new_tokens)

    def _has_room(self, tokens: int, more: int) -> bool:
        """Return True if a slot is free and blocks for `tokens` plus half of `more`, beside the running rows'."""
        if not self._free_slots:
            return False
        running = [*self._prefilling, *self._decoding]
        piece = self.budget if self._in_pieces else max(self.budget, tokens)
        return not self._room.bounded or not running or self._room.takes(running, tokens, more, piece)

    def _piece(self, running: RunningSequence) -> int:
        """Most tokens of a row that one step computes."""
        left = len(running.ids) - running.filled
        return max(1 + running.drafted, min(self.budget, left) if self._in_pieces else left)

    def add(self, row: Row, done: Done) -> None:
        """Assign a slot to a row that fits; a later `step` calls `done` when the row ends."""
        row.cached = 0
        try:
            running = make_sequence(self._task, row, done, self._added)
            self._allocate(running)
        except Exception as error:
            done(error)
        else:
            self._added += 1
            self._prefilling.append(running)
            self._room.joined(running)
            self._reused(running, running.filled)
            self._evict()

    def _allocate(self, running: RunningSequence) -> None:
        """Open a slot for a row, with its longest cached prefix."""
        salt = running.salt if self._reuse else None
        slot = self.decoder.choose(self._free_slots, running.ids, salt)
        self.decoder.adapters.use(slot, running.adapter)
        running.filled = self.decoder.open(slot, running.sampling, running.ids, salt)
        del self._free_slots[slot]
        running.slot, running.begun = slot, False

    def _salt(self, running: RunningSequence) -> str:
        return self.decoder.rotary.salt(running.ids, running.salt) or ""

    def _reused(self, running: RunningSequence, count: int) -> None:
        """Count prompt tokens found in the prefix cache."""
        if not running.tokens:
            self._task.statistics.count("cached_tokens", count - running.row.cached)
            running.row.cached = count

    def _free(self, running: RunningSequence) -> None:
        """Take a row off its slot; the blocks keep their contents unless these may be wrong."""
        slot, running.slot = running.slot, -1
        self.decoder.release(slot, None if running.failure or not self._reuse else running.token_ids)
        self._free_slots[slot] = None

    def step(self) -> None:
        """Advance every row by one token, and prompts by the rest of the budget; never raises."""
        put_off = self._late and any(running.open for running in self._going())  # beside which nothing is drafted
        self._append_read(put_off)
        enqueued = self._decode()
        enqueued += self._prefill(max(_LEAST_PROMPT, self.budget - len(self._decoding)))
        self._append_read(False)
        due = self._under_way.due()
        for each in due:  # a mask needs the token before, while the GPU computes the logits for it
            self._tried(each, each.advance)
        enqueued += self._pick_open()
        self._under_way.read, self._under_way.pending = (due, enqueued) if self._late else (enqueued, [])
        self._append_read(put_off)
        self._sweep()

    def _append_read(self, put_off: bool) -> None:
        """Append tokens that were read, unless that is put off until the GPU has its next step.

        It is where masks have to be there before a step ends, since they take most of the time that the host has.
        """
        if put_off:
            return
        read, self._under_way.read = self._under_way.read, []
        for each in read:
            self._tried(each, each.append)

    def _going(self) -> list[RunningSequence]:
        """Rows that decode on, as far as their tokens are known."""
        return [each for each in self._decoding if each.enqueued < each.most and not each.over]

    def _decode(self) -> list[Enqueued]:
        for each in self._under_way.pending:
            self._tried(each, each.settle)
        going = sorted(self._going(), key=lambda running: running.slot)
        drafts = self._drafting.drafts(going, self._under_way, self._room.spares(len(going)))
        step = partial(self._speculate, drafts) if drafts else self._step
        stepped = [each for _, each in self._isolate_failures(going, step)]
        for running in going:
            running.enqueued += 1
        return stepped

    def _step(self, batch: list[RunningSequence]) -> Enqueued:
        """Decode the next tokens of rows; logprobs are taken before a next step overwrites the logits."""
        pending = self.decoder.step([running.slot for running in batch])
        free = [row for row, running in enumerate(batch) if not running.open]
        asking = {batch[row]: [row] for row in free if batch[row].details is not None}
        logits = self.decoder.last_logits(len(batch)) if asking else None
        self._open += [running for running in batch if running.open]
        return self._enqueued([batch[row] for row in free], single(pending, free), asking, logits)

    def _speculate(self, drafts: Drafts, batch: list[RunningSequence]) -> Enqueued:
        """Decode the next tokens of rows that are fed these."""
        runs = self.decoder.speculate([(running.slot, drafts[running]) for running in batch])
        asking, count = {}, 0
        for running in batch:
            first, count = count, count + len(drafts[running])
            running.drafted = count - first - 1
            if running.details is not None:
                asking[running] = list(range(first, count))
        made = self._enqueued(batch, runs.runs, asking, self.decoder.last_logits(count) if asking else None)
        made.unsettled = True
        return made

    def _pieces(self, budget: int) -> list[tuple[RunningSequence, list[int]]]:
        """Choose the next pieces of prompts, within a number of tokens and the time that there is."""
        parts: list[tuple[RunningSequence, list[int]]] = []
        leaders: dict[Begin, RunningSequence] = {}
        cost, ms = self.decoder.prompt_cost, _PIECE_MS if self._decoding else _ALONE_MS
        for running in self._prefilling:
            if budget <= 0 or ms <= 0:
                break
            leader = leaders.setdefault(begin(self._salt(running), running.ids), running)
            if not running.begun and not self._begin(running, leader):
                continue
            most, at, left = budget, running.filled, len(running.ids) - running.filled
            if not self._in_pieces:
                if parts and left > budget:
                    continue
                most = left
            elif cost is not None:
                share, most = (ms, budget) if parts else self._oldest_share(cost, ms, budget)
                most = min(most, chunk_within(cost.most(at, share), left, at))
            if cost is not None:
                ms -= cost.ms(at, min(most, left))
            ids = running.ids[at : at + most]
            budget -= len(ids)
            parts.append((running, ids))
        return parts

    def _oldest_share(self, cost: PromptCost, ms: float, budget: int) -> tuple[float, int]:
        """Time and tokens for the oldest prompt's piece: all but the others' need, which counts up to half."""
        others = [(running.filled, len(running.ids) - running.filled) for running in self._prefilling[1:]]
        needed, tokens = sum(cost.ms(*each) for each in others), sum(left for _, left in others)
        return ms - min(ms / 2, needed), budget - min(budget // 2, tokens)

    def _prefill(self, budget: int) -> list[Enqueued]:
        parts = self._pieces(budget)
        pieces, cost = dict(parts), self.decoder.prompt_cost
        ms = sum(cost.ms(running.filled, len(ids)) for running, ids in parts) if cost else 0.0
        chosen = [running for running, _ in parts]
        filled = self._isolate_failures(
            chosen, lambda batch: self.decoder.prefill_many([(running.slot, pieces[running]) for running in batch])
        )
        for running in [running for batch, _ in filled for running in batch]:
            running.filled += len(pieces[running])
        for running, ids in parts:
            if is_out_of_memory(running.failure) and len(ids) > _LEAST_PROMPT and self._in_pieces:
                self._take_smaller_pieces(running, len(ids))
        whole = [running for running in chosen if running.filled == len(running.ids) and not running.failure]
        self._prefilling = [running for running in self._prefilling if running not in whole]
        self._decoding += whole
        for running in whole:
            running.enqueued = len(running.tokens) + 1
        self._open += [running for running in whole if running.open]
        free = [running for running in whole if not running.open]
        sampled = [each for _, each in self._isolate_failures(free, self._sample)]
        for each in sampled:
            each.slow = ms > SLOW_MS
        return sampled

    def _pick_open(self) -> list[Enqueued]:
        """Pick the next tokens of open rows, all of whose tokens so far are known."""
        due, self._open = [running for running in self._open if not running.over], []
        bound, free = ([each for each in due if (each.grammar is None) is alone] for alone in (False, True))
        return [each for some in (bound, free) for _, each in self._isolate_failures(some, self._sample)]

    def _begin(self, running: RunningSequence, leader: RunningSequence) -> bool:
        """Take the prefix that was cached since the slot was opened; False to wait for a row that is computing it."""
        shared = common_prefix(leader.ids, running.ids) if leader is not running else 0
        most = running.filled + MIN_PREFIX_TOKENS
        if self._reuse and leader.filled < shared and shared >= most:
            return False
        if self._reuse and self.decoder.tables.match(running.ids, self._salt(running)) >= most:
            running.filled = self.decoder.open(running.slot, running.sampling, running.ids, running.salt)
            self._reused(running, running.filled)
        running.begun = True
        return True

    def _sample(self, batch: list[RunningSequence]) -> Enqueued:
        """Sample the next tokens of rows with whole prompts, or of open rows; all have a grammar, or none."""
        slots = [running.slot for running in batch]
        asking = {running: [row] for row, running in enumerate(batch) if running.details is not None}
        logits = self.decoder.open_logits(slots) if asking else None
        bound = [running.grammar for running in batch if running.grammar is not None]
        masks = self._task.grammars.masks(bound) if bound else None
        added = [running.added for running in batch]
        return self._enqueued(batch, single(self.decoder.sample(slots, masks, added)), asking, logits)

    def _enqueued(self, batch: list[RunningSequence], tokens: Tokens, asking: Asking, logits: Any) -> Enqueued:
        """Pair tokens just picked with the logprobs of sequences that ask for them, by their rows of the logits."""
        if logits is None:
            return Enqueued(batch, tokens, dict)
        try:
            return Enqueued(batch, tokens, measured(asking, logits, self.decoder.picked(len(logits))))
        except Exception as error:  # the tokens are valid all the same: only these rows fail
            for running in asking:
                running.failure = error
            return Enqueued(batch, tokens, dict)

    def _take_smaller_pieces(self, running: RunningSequence, tokens: int) -> None:
        """Halve the chunk size for all prompts, after a chunk ran out of memory by itself, and try again."""
        running.failure = None
        self.budget = max(_LEAST_PROMPT, tokens // 2)
        logger.warning("%d tokens of a prompt ran out of memory; a step takes at most %d now", tokens, self.budget)

    def _isolate_failures(
        self, batch: list[RunningSequence], call: Callable[[list[RunningSequence]], Any]
    ) -> list[tuple[list[RunningSequence], Any]]:
        """Call with all rows; if that fails, with each alone, so that only rows that cannot be computed fail.

        If memory was short, with half of them.
        """
        if not batch:
            return []
        try:
            return [(batch, call(batch))]
        except Exception as error:
            failed = error
        if is_out_of_memory(failed):  # outside the handler, which would keep the failed call's memory alive
            free_memory(failed)
        if len(batch) == 1:
            batch[0].failure = failed
            return []
        size = len(batch) // 2 if is_out_of_memory(failed) else 1
        logger.warning("a step of %d rows failed (%s); trying %d at once", len(batch), type(failed).__name__, size)
        parts = [batch[at : at + size] for at in range(0, len(batch), size)]
        return [found for part in parts for found in self._isolate_failures(part, call)]

    def _tried(self, enqueued: Enqueued, call: Callable[[TextGenerator], None]) -> None:
        """Settle or append tokens; if they cannot be read, their rows fail."""
        try:
            call(self._task)
        except Exception as error:
            for running in enqueued.batch:
                running.failure = error

    def _sweep(self) -> None:
        """Answer rows that are done, free their slots, and make sure that the others have room."""
        everyone = [*self._decoding, *self._prefilling, *self._preempted]
        over = {r for r in everyone if r.ended or r.failure or r.row.cancelled.is_set()}
        self._decoding = [running for running in self._decoding if running not in over]
        self._prefilling = [running for running in self._prefilling if running not in over]
        self._preempted = deque(running for running in self._preempted if running not in over)
        for running in (running for running in everyone if running in over):
            if running.slot >= 0:
                self._free(running)
            if not running.failure:
                show_end(self._task, running.row, [running.output])
            running.done(running.failure or [running.output])
        self._room.changed()
        self._resume()
        lengths, rotary = self.decoder.lengths, self.decoder.rotary
        for running in [each for each in self._decoding if rotary.is_due(each.slot, lengths[each.slot])]:
            self._take(running)  # its next token turns all positions anew
        self._preempt()

    def _resume(self) -> None:
        """Give preempted rows new slots; tokens still being computed when they lost theirs have been read by now."""
        while self._preempted and not self._under_way.holds(self._preempted[0]):
            running = self._preempted[0]
            if not self._has_room(len(running.token_ids), running.most - len(running.tokens)):
                return
            running.ids = running.token_ids
            self._preempted.popleft()
            try:
                self._allocate(running)
            except Exception as error:
                running.done(error)
            else:
                self._prefilling.insert(0, running)
                self._room.changed()

    def _preempt(self) -> None:
        """Keep the slots' blocks within the capacity: evict cached ones first, then preempt the youngest rows."""
        while self._evict() < 0:
            running = [*self._prefilling, *self._decoding]
            if len(running) <= 1:
                return
            self._take(max(running, key=lambda each: (each.row.priority, each.number)))
            self._task.statistics.count("preemptions", 1)

    def _take(self, running: RunningSequence) -> None:
        """Take a row off its slot until there is room for it again."""
        self._prefilling = [each for each in self._prefilling if each is not running]
        self._decoding = [each for each in self._decoding if each is not running]
        self._free(running)
        self._preempted.appendleft(running)
        self._room.changed()

    def _evict(self) -> int:
        """Evict cached blocks until the rest fits; return the blocks that active rows leave of the capacity."""
        return self._room.evict((*self._prefilling, *self._decoding))
