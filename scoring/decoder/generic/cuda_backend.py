"""Runs a `GenericModel` on a GPU: its modules between this package's attention kernels, captured in graphs.

A forward that waits for the host, as some mixtures of experts do, cannot be captured: it is launched each time.
"""

import warnings
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, ClassVar

import torch
from torch import Tensor

from scoring.decoder.buffers import packed
from scoring.decoder.cuda_backend import CudaBackend
from scoring.decoder.decode_step import Launcher
from scoring.decoder.draft_step import DraftStep
from scoring.decoder.generic.compiled import compiled_forwards, layers_with
from scoring.decoder.generic.model import Attend, GenericModel
from scoring.decoder.graphs import Launches
from scoring.decoder.kv_cache import KVCache
from scoring.decoder.low_rank import SlotAdapters
from scoring.decoder.prefill import Prefiller
from scoring.decoder.prompt_attention import Run

_GAIN = 1.1  # a smaller speed-up is not worth a compiler at every start
_TIMED = 20  # steps of one row, of which the median tells whether compiled layers are faster


class GenericStep(Launcher):
    """Launches one decode step: the model's modules, then sampling."""

    model: Any  # a GenericModel
    folds: ClassVar[bool] = False  # norms and products are the model's own

    def forward(self, rows: int, far: bool = False) -> Tensor:
        self.far = far
        s, b = self.state, self.buffers
        slots = b.slots[:rows].long()
        order = torch.arange(rows, device=slots.device)
        logits = _forward(self, rows, s.tokens[slots], s.lengths[slots].long(), order)
        b.narrow[:rows].copy_(logits)
        return b.narrow

    def logits_of(self, rows: int) -> Tensor:
        return self.buffers.narrow


class GenericPrefiller(Prefiller):
    """Launches one chunk of prompts over the model's modules."""

    model: Any  # a GenericModel

    def piece(self, rows: int, runs: Sequence[Run] = ()) -> None:
        self.runs = runs
        self.mark(rows)
        tokens, positions = self.tokens[:rows].long(), self.positions[:rows].long()
        self.logits.copy_(_forward(self, rows, tokens, positions, self.ends[0].long()))


class GenericDraftStep(DraftStep):
    """Launches one step with drafts over the model's modules."""

    model: Any  # a GenericModel

    def forward(self, rows: int, far: bool = False) -> Tensor:
        logits = _forward(self, rows, self.tokens[:rows].long(), self.positions[:rows].long(), self.order[:rows].long())
        self.buffers.narrow[:rows].copy_(logits)
        return self.buffers.narrow

    def logits_of(self, rows: int) -> Tensor:
        return self.buffers.narrow


class GenericCudaBackend(CudaBackend):
    """`CudaBackend` of the generic tier."""

    uncaptured = ""  # why launches are not captured, if they are not
    uncompiled = ""  # why the layers are not compiled, if that was tried

    def __init__(
        self, model: GenericModel, state: KVCache, drafts: bool = False, adapters: SlotAdapters | None = None
    ) -> None:
        self._model = model
        if model.team is not None:
            self.uncaptured = "sums over the GPUs are those of its modules"
        super().__init__(
            model, state, pdl=False, drafts=drafts, adapters=adapters
        )  # the modules' kernels are none that start early

    def _launchers(self, model: Any, state: KVCache, pdl: bool) -> tuple[Launcher, Prefiller]:
        return GenericStep(model, state, state.slots, pdl=pdl), GenericPrefiller(model, state, pdl=pdl)

    def _drafter(self, model: Any, state: KVCache, pdl: bool) -> DraftStep:
        return GenericDraftStep(model, state, pdl=pdl)

    @property
    def notes(self) -> list[str]:
        """Remarks on graphs and compiled layers."""
        graphs = [f"without graphs: {self.uncaptured}"] if self.uncaptured else []
        layers = [f"layers not compiled: {self.uncompiled}"] if self.uncompiled else []
        return [*graphs, *layers, *(["layers compiled"] if self._model.compiled else [])]

    def warm_up(self, sizes: Sequence[int] | None = None) -> None:
        """Compile the layers if a step gains by it, then capture as `CudaBackend` does."""
        if not self.uncaptured and self._adapters is None:  # compiled layers lose their modules' hooks
            self._compile()
        super().warm_up(sizes)

    def _compile(self) -> None:
        """Time a step of one row as the modules are and compiled, and keep the faster; tell why not if not."""
        layers = layers_with(self._model.module, self._model.places)
        plain = _milliseconds(self._capture(1))
        if self.uncaptured:
            return
        self._model.compiled = compiled_forwards(layers)
        try:
            beside = _milliseconds(self._capture(1))
        except Exception as failure:  # whatever a compiler says of a model's own code
            told = next((line for line in str(failure).splitlines() if line.strip()), "")
            self.uncompiled = f"compiling fails: {type(failure).__name__}: {told.strip()[:200]}"
        else:
            if plain >= beside * _GAIN:
                return
            self.uncompiled = f"compiled {beside:.2f} ms a step against {plain:.2f} ms"
        self._model.compiled = {}
        self._capture(1)

    def _captured(self, launch: Callable[[], object]) -> Launches:
        self.uncaptured = self.uncaptured or waits_for_the_host(launch)
        return _Launched(launch) if self.uncaptured else super()._captured(launch)


def _milliseconds(step: Launches) -> float:
    """Median milliseconds of a step on the device."""
    times = []
    for _ in range(_TIMED):
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call,unused-ignore]
        began.record()
        step.replay()
        ended.record()
        ended.synchronize()
        times.append(began.elapsed_time(ended))
    return float(median(times))


class _Launched:
    """A launch that is repeated from the host."""

    def __init__(self, launch: Callable[[], object]) -> None:
        self._launch = launch

    def replay(self) -> None:
        self._launch()


def waits_for_the_host(launch: Callable[[], object]) -> str:
    """Run a launch twice, and tell what it waited for the second time; empty if for nothing.

    Asked before a capture, because one that fails leaves the allocator's pools unusable.
    """
    launch()  # compiles kernels, which waits
    torch.cuda.synchronize()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch calls the mode a prototype
            torch.cuda.set_sync_debug_mode("error")
        launch()
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        return str(error).strip().splitlines()[0]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return ""


def _forward(own: Launcher, rows: int, tokens: Tensor, positions: Tensor, picked: Tensor) -> Tensor:
    """Enqueue the model's forward over rows of tokens, its attention over the cache; logits of the rows picked."""
    model: Any = own.model
    with own.adapting(rows):
        found: Tensor = model.forward(tokens, positions, picked, paged_attention(own, rows))
    return found


def paged_attention(own: Launcher, rows: int) -> Attend:
    """Attention of a launcher's rows by this package's kernels, which write their keys and values to the cache."""
    model: Any = own.model
    b, readers = own.buffers, own.state.groups.readers

    def attend(index: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        layer, heads = model.layers[index], model.heads_of(index)
        if index in readers:  # its keys and values are in the cache
            packed(b.q, rows, heads.queries * heads.width).copy_(q.flatten(1))
        else:
            torch.cat((q, k, v), 1, out=packed(b.qkv, rows, heads.product).view(rows, -1, heads.width))
            own.scatter(rows, index, layer)
        own.attention(rows, index, layer)
        return packed(b.attended, rows, heads.queries * heads.width)

    return attend
