"""Runs decode steps and prompts on a GPU: one CUDA graph per batch size, replayed without waiting for the host."""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from scoring.decoder.adapter_step import AdaptedLaunches, AdapterStep
from scoring.decoder.chunk_size import CHUNKS, SPANS, Span
from scoring.decoder.decode_step import Launcher
from scoring.decoder.draft_step import DraftStep
from scoring.decoder.drafts import SIZES, Placed
from scoring.decoder.graphs import Graphs, Launches, batch_sizes
from scoring.decoder.kv_cache import KVCache, SamplingParams
from scoring.decoder.low_rank import SlotAdapters
from scoring.decoder.model import CachedModel
from scoring.decoder.pending import Pending
from scoring.decoder.prefill import Part, Prefiller, admit, extend, pieces, record, runs_of
from scoring.decoder.prompt_attention import IN_GRAPHS
from scoring.decoder.prompt_cost import Piece, PromptCost, fitted
from scoring.decoder.put_off import PutOffSampling
from scoring.decoder.transfers import PendingTokens, PinnedUpload, SideUpload, Wait, fill, synchronize

_ENTRIES = 1024  # blocks that are entered in the tables at once
_TIMED, _FAR = 1024, 16_384  # tokens of the chunks that are timed, and the position of the second
_GUESS = 0.04  # milliseconds per token of a prompt, of a large model: 1,024 tokens beside streams
_AHEAD = 2  # chunks of prompts that are under way at once, so that whoever comes does not wait for more
_COMPILING_S = 600.0  # most time that another rank may take to compile the kernels of one graph


class CudaBackend:
    """Steps of up to `state.slots` rows. A batch is padded up to the next captured size with the scratch slot.

    With `drafts` also steps of several tokens a slot, which have buffers and graphs of their own. Steps in which a row
    has one of the `adapters` have graphs of their own too: all others run as without them.
    """

    def __init__(
        self, model: CachedModel, state: KVCache, pdl: bool = True, drafts: bool = False,
        adapters: SlotAdapters | None = None,
    ) -> None:  # fmt: skip
        capable = torch.cuda.get_device_capability(model.device) >= (9, 0)
        self.launcher, self.prefiller = self._launchers(model, state, pdl and capable)
        self.drafter = self._drafter(model, state, pdl and capable) if drafts else None
        self.sizes = batch_sizes(state.slots)
        self._team = model.team
        self._wait: Wait = synchronize if model.team is None else model.team.wait
        self._scratch = state.slots
        self.graphs = self._plain = Graphs()  # of the kind of the last launch
        self._adapted = Graphs()  # of launches of which some rows have adapters
        self._adapters = adapters if adapters is not None and adapters.bank is not None else None
        self._pool: Any = None
        self._placed: list[int] = []  # slots that the rows on the device stand for now
        self._last = 0
        self._ran = self.launcher  # what picked the last tokens
        self._opened: dict[int, list[int]] = {}  # records of opened slots, not yet sent to the device
        self._records = torch.zeros(
            state.slots, len(record(0, SamplingParams())), dtype=torch.int32, device=model.device
        )
        self._grown: list[tuple[int, int]] = []  # places in the table and blocks, not yet sent
        self._entries = torch.zeros(_ENTRIES, 2, dtype=torch.int32, device=model.device)
        self._sent = {
            "table": PinnedUpload(self._wait, *self._entries.shape),
            "slots": PinnedUpload(self._wait, state.slots),
            "records": PinnedUpload(self._wait, *self._records.shape),
            "numbers": PinnedUpload(self._wait, self.prefiller.layout.size),
            "adapters": PinnedUpload(self._wait, state.slots + 1),
        }
        if self.drafter is not None:
            self._sent["drafts"] = PinnedUpload(self._wait, self.drafter.layout.size)
        self._open: list[int] = []  # slots that the rows of `sample` stand for, apart from a step's
        self._sampled = torch.zeros(state.slots, dtype=torch.int32, device=model.device)
        self._beside = SideUpload()
        self.put_off = PutOffSampling(self.launcher, state.slots, self._wait, self._beside, self._read)
        self._spare: list[Tensor] = []
        self._chunks: deque[Any] = deque()  # events after the last chunks
        self.prompt_cost = PromptCost(_GUESS)  # until `warm_up` measures it
        self.warm = False  # all is captured
        self._reserve_adapters(model)

    def _launchers(self, model: Any, state: KVCache, pdl: bool) -> tuple[Launcher, Prefiller]:
        """Return the launchers of a step and of a chunk of prompts."""
        return Launcher(model, state, state.slots, pdl=pdl), Prefiller(model, state, pdl=pdl)

    def _drafter(self, model: Any, state: KVCache, pdl: bool) -> DraftStep:
        """Return the launcher of a step with drafts."""
        return DraftStep(model, state, pdl=pdl)

    def _reserve_adapters(self, model: Any) -> None:
        """Have all launches serve the adapters."""
        if self._adapters is None:
            return
        rows = max(self.launcher.rows, self.prefiller.longest, SIZES[-1])
        step = AdapterStep(self._adapters, self.prefiller.state.adapter, rows)
        for told in self._launches():
            told.adapters = step

    def _launches(self) -> list[AdaptedLaunches]:
        return [self.launcher, self.prefiller, *([] if self.drafter is None else [self.drafter])]

    def _kind(self, slots: Iterable[int]) -> Graphs:
        """Have the next launches add what adapters of these slots do, if any has one; the graphs of that kind."""
        return self._of_kind(self._adapters is not None and self._adapters.any(slots))

    def _of_kind(self, adapted: bool) -> Graphs:
        for told in self._launches():
            told.adapted = adapted
        self.graphs = self._adapted if adapted else self._plain
        return self.graphs

    @property
    def notes(self) -> list[str]:
        """Remarks on how steps run, if not by kernels in graphs alone."""
        return []

    def open(self, slot: int, sampling: SamplingParams, long: bool = False) -> None:
        """Empty a slot; sent to the device, with others opened meanwhile, before the next prefill or step."""
        self.put_off.finish_before([slot])
        self._opened[slot] = record(slot, sampling, long)

    def prefill(self, parts: Sequence[Part]) -> Tensor:
        """Append prompt tokens to slots; logits [parts, vocabulary] after the last of each."""
        self.settle()
        told = self.prefiller
        logits = torch.empty(
            len(parts), self.prefiller.model.vocabulary, dtype=told.logits.dtype, device=told.logits.device
        )
        for piece in pieces(parts, told.longest, told.layout.parts):
            self._chunk([part for _, part in piece])
            first = piece[0][0]
            logits[first : first + len(piece)].copy_(told.logits[: len(piece)])
        return logits

    def _chunk(self, parts: Sequence[Part]) -> None:
        """Enqueue a chunk: in a graph, or launch by launch if there are spans, of which graphs hold the usual ones."""
        if len(self._chunks) == _AHEAD:
            self._wait(self._chunks.popleft())
        self._enqueue(parts)
        self._chunks.append(torch.cuda.Event())  # type: ignore[no-untyped-call,unused-ignore]
        self._chunks[-1].record()

    def _enqueue(self, parts: Sequence[Part]) -> None:
        told = self.prefiller
        graphs = self._kind(slot for slot, _, _ in parts)
        rows = sum(len(ids) for _, _, ids in parts)
        size = next(size for size in CHUNKS if size >= rows)
        alone = sum(position >= min(SPANS) for _, position, _ in parts) == 1
        spans = [told.attending.spans(len(ids), position, alone, size) for _, position, ids in parts]
        if any(spans):
            self._tell(parts, spans)
            held = next((most for most in IN_GRAPHS if most >= rows), 0), sum(keys for _, keys in spans[0])
            whole = graphs.spanned.get(held) if len(parts) == 1 else None
            if whole is None:
                told.piece(size, runs_of(parts, spans))
            else:
                whole.replay()
            return
        graph = graphs.prompts.get(size) or self._capture_prompt(size)
        self._tell(parts)
        graph.replay()

    def extend(self, grown: Iterable[tuple[int, int, int, int]]) -> None:
        """Enter blocks in the tables, as `KVCache.extend` does; sent before the next prefill or step."""
        self._grown += self.prefiller.state.entries(grown)

    def settle(self) -> None:
        """Enqueue the records of slots that were opened, and the blocks that slots were given."""
        for first in range(0, len(self._grown), _ENTRIES):
            some = self._grown[first : first + _ENTRIES]
            target = self._entries[: len(some)]
            self._sent["table"].send(target, partial(fill, some))
            extend(self.prefiller.state, target)
        self._grown = []
        if self._adapters is not None and self._adapters.changed:
            table = self._adapters.of((slot, 1) for slot in range(self._scratch + 1))
            self._sent["adapters"].send(self.prefiller.state.adapter, partial(fill, table))
            self._adapters.changed = False
        if not self._opened:
            return
        records = list(self._opened.values())
        target = self._records[: len(records)]
        self._sent["records"].send(target, partial(fill, records))
        admit(self.prefiller.model, self.prefiller.state, target, len(records))
        self._opened = {}

    def step(self, slots: Sequence[int], longest: int, left: Sequence[int] = ()) -> Pending:
        """One step of these slots, of up to `longest` tokens: feed each its last token, pick the next.

        Of slots that are `left` the next token is picked later, and so are the others' then, if `sample` can.
        """
        self.put_off.finish()
        self.settle()
        size = next(size for size in self.sizes if size >= len(slots))
        far, graphs = self.launcher.is_far(size, longest), self._kind(slots)
        picked = not left or self._team is not None  # of which the other ranks would have to know
        graph = graphs.step(size, far, picked) or self._capture(size, far, picked)
        self._place([*slots, *[self._scratch] * (size - len(slots))])
        graph.replay()
        self._last, self._ran = size, self.launcher
        return self._read(len(slots)) if picked else self.put_off.put_off(slots, size, left)

    def speculate(self, placed: Sequence[Placed]) -> PendingTokens:
        """One step of up to 8 slots, fed up to 32 tokens: the token picked after each of them."""
        assert self.drafter is not None
        self.put_off.finish()
        self.settle()
        rows = sum(len(tokens) for _, _, tokens in placed)
        size = next(size for size in SIZES if size >= rows)
        graphs = self._kind(slot for slot, _, _ in placed)
        graph = graphs.drafts.get(size) or self._capture_drafts(size)
        self._tell_drafts(placed)
        graph.replay()
        self._last, self._ran = size, self.drafter
        return self._read(rows)

    def sample(self, slots: Sequence[int], logits: Tensor, masks: Tensor | None = None) -> PendingTokens:
        """Pick a token for each slot from logits [slots, vocabulary], within masks [slots, words] if given."""
        self.put_off.finish_before(slots)
        self.put_off.newest = False
        if slots != self._open:
            self._open = list(slots)
            self._sent["slots"].send(self._sampled[: len(slots)], partial(fill, self._open))
        if masks is not None:
            masks = self._beside.send(masks, logits.device)
        self.launcher.sample(len(slots), logits.contiguous(), advance=False, masks=masks, slots=self._sampled)
        self._ran = self.launcher
        return self._read(len(slots))

    def logits(self, count: int) -> Tensor:
        """Logits of the last step's first rows, [count, vocabulary]."""
        return self._ran.logits_of(self._last)[:count]

    def picked(self, count: int) -> Tensor:
        """Tokens [count] picked last."""
        if self.put_off.newest:
            self.put_off.finish()
        return self._ran.buffers.out[:count]

    def warm_up(self, sizes: Sequence[int] | None = None) -> None:
        """Compile and capture batch sizes, largest first, so that the graphs share one pool; without sizes, all."""
        for adapted in (False,) if self._adapters is None else (True, False):
            self._capture_all(self._of_kind(adapted), sizes)
        self._warm_sampling()
        if sizes is None:
            self.prompt_cost, self.warm = self._measured(), True

    def _capture_all(self, graphs: Graphs, sizes: Sequence[int] | None) -> None:
        """Capture the graphs of one kind for `warm_up`."""
        for size in sorted(sizes or self.sizes, reverse=True):
            fitting = next(known for known in self.sizes if known >= size)
            reaches = self.launcher.is_far(fitting, self.prefiller.state.max_length)
            for far, picked in product((False, True) if reaches else (False,), (True, False)):
                if graphs.step(fitting, far, picked) is None and (picked or self._team is None):
                    self._capture(fitting, far, picked)
        if sizes is None:
            self._warm_prompts(graphs)
        for size in SIZES if sizes is None and self.drafter is not None else ():
            if size not in graphs.drafts:
                self._capture_drafts(size)

    def _warm_prompts(self, graphs: Graphs) -> None:
        """Capture chunks of prompts for `warm_up`."""
        for size in reversed(CHUNKS):
            if size <= self.prefiller.longest and size not in graphs.prompts:
                self._capture_prompt(size)
        for held, position in self.prefiller.attending.in_graphs().items():
            if held not in graphs.spanned:
                self._capture_spanned(held, position)

    @torch.inference_mode()
    def _warm_sampling(self) -> None:
        """Pick tokens of the scratch slot in every way that a request can, which compiles the kernels for it."""
        told, words = self.launcher, -(-self.launcher.model.vocabulary // 32)
        masks = torch.full((1, words), -1, dtype=torch.int32, device=told.model.device)
        self._place([self._scratch])
        self._open = [self._scratch]
        self._sent["slots"].send(self._sampled[:1], partial(fill, self._open))
        for logits in (told.buffers.logits, told.buffers.narrow):
            told.sample(1, logits, advance=True, masks=masks)
            for asked in (masks, None):
                told.sample(1, logits, advance=False, masks=asked, slots=self._sampled)
        self._settle_ranks()

    def plan(self) -> None:
        """Prepare libraries' state of each thread: called on the thread that will run this."""
        self.prefiller.attending.plan()

    def _measured(self) -> PromptCost:
        """Time chunks of the scratch slot: at its start, further on, and where spans of keys are cuDNN's."""
        told, length = self.prefiller, self.prefiller.state.max_length
        count = min(_TIMED, told.longest, length)
        distance = min(_FAR, length - count)
        near, far = (self._timed((self._scratch, at, [0] * count)) for at in (0, distance))
        cost = fitted(count, near, far, distance)
        spanned = sum(keys for _, keys in told.attending.spans(count, length - count, True, count))
        if spanned:
            cost = cost.with_spans(count, spanned, self._timed((self._scratch, spanned, [0] * count)))
            cost = replace(
                cost, pieces=tuple(self._piece(count, spanned) for count in IN_GRAPHS if count <= told.longest)
            )
        told.state.lengths[self._scratch] = 0
        return cost

    def _piece(self, count: int, spanned: int) -> Piece:
        """Time a short chunk: its keys take longer, for want of programs, and spans are gathered for it too."""
        near = min(SPANS) - max(IN_GRAPHS)
        base, kept, apart = (self._timed((self._scratch, at, [0] * count)) for at in (0, near, spanned))
        return Piece(count, base, max(0.0, kept - base) / near, max(0.0, apart - base) / spanned)

    def _timed(self, part: Part) -> float:
        """Milliseconds of a chunk of one part, the faster of two."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call,unused-ignore]
        found = []
        for _ in range(2):
            begin.record()
            self._enqueue([part])
            end.record()
            self._wait(end)
            found.append(float(begin.elapsed_time(end)))
        return min(found)

    def _read(self, count: int) -> PendingTokens:
        rows = max(self.launcher.rows, SIZES[-1])
        return PendingTokens(self.picked(count), self._spare, rows, self._wait)

    def _place(self, slots: list[int]) -> None:
        if slots == self._placed[: len(slots)]:
            return

        self._sent["slots"].send(self.launcher.buffers.slots[: len(slots)], partial(fill, slots))
        self._placed = slots + self._placed[len(slots) :]

    def _tell(self, parts: Sequence[Part], spans: Sequence[Sequence[Span]] = ()) -> None:
        laid = partial(self.prefiller.layout.fill, parts=parts, scratch=self._scratch, spans=spans)
        self._sent["numbers"].send(self.prefiller.numbers, laid)

    def _capture_prompt(self, size: int) -> Launches:
        self._tell([])
        self.graphs.prompts[size] = self._captured(lambda: self.prefiller.piece(size))
        return self.graphs.prompts[size]

    def _capture_spanned(self, held: tuple[int, int], position: int) -> None:
        """Capture a chunk that is one part with spans; where their keys lie is told with the chunk."""
        count = held[0]
        part = self._scratch, position, [0] * count
        spans = self.prefiller.attending.spans(count, position, True, count)
        self._tell([part], [spans])
        runs = runs_of([part], [spans])
        self.graphs.spanned[held] = self._captured(lambda: self.prefiller.piece(count, runs))

    def _tell_drafts(self, placed: Sequence[Placed]) -> None:
        told = self.drafter
        assert told is not None
        self._sent["drafts"].send(told.numbers, lambda buffer: told.layout.fill(buffer, placed, self._scratch))

    def _capture_drafts(self, size: int) -> Launches:
        told = self.drafter
        assert told is not None
        self._tell_drafts([])
        self.graphs.drafts[size] = self._captured(lambda: told.step(size))
        return self.graphs.drafts[size]

    def _capture(self, size: int, far: bool = False, picked: bool = True) -> Launches:
        self._place([self._scratch] * size)
        launch: Callable[[int, bool], object] = self.launcher.step if picked else self.launcher.forward
        return self.graphs.keep(self._captured(lambda: launch(size, far)), size, far, picked)

    def _captured(self, launch: Callable[[], object]) -> Launches:
        """Run the function once on scratch rows, which compiles its kernels, then capture it."""
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call,unused-ignore]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            launch()
        torch.cuda.current_stream().wait_stream(side)
        self._settle_ranks()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            launch()
        self._pool = self._pool or graph.pool()
        return graph

    def _settle_ranks(self) -> None:
        """Wait for enqueued work, with a long timeout while ranks compile: a capture begins by waiting without any."""
        if self._team is not None:
            enqueued = torch.cuda.Event()  # type: ignore[no-untyped-call,unused-ignore]
            enqueued.record()
            self._team.wait(enqueued, _COMPILING_S)
