"""Runs decode steps on a GPU: one CUDA graph per batch size, replayed without waiting for the host."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from scoring.decoder_form import Form
from scoring.decoder_launch import GEMV_ROWS, Launcher
from scoring.decoder_state import State


class OnTheWay:
    """Tokens being copied to the host."""

    def __init__(self, source: Tensor) -> None:
        self._host = torch.empty(source.shape, dtype=source.dtype, pin_memory=True)
        self._host.copy_(source, non_blocking=True)
        self._event = torch.cuda.Event()  # type: ignore[no-untyped-call,unused-ignore]
        self._event.record()

    def tokens(self) -> list[int]:
        """One token a row; waits for the copy, and for nothing enqueued after it."""
        self._event.synchronize()
        values: list[int] = self._host.tolist()
        return values


class CudaBackend:
    """Steps of up to `state.slots` rows. A batch is padded up to the next captured size with the scratch slot."""

    def __init__(self, form: Form, state: State, pdl: bool = True) -> None:
        capable = torch.cuda.get_device_capability(form.device) >= (9, 0)
        self.launcher = Launcher(form, state, state.slots, pdl=pdl and capable)
        self.sizes = batch_sizes(state.slots)
        self._scratch = state.slots
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._pool: Any = None
        self._placed: list[int] = []  # slots that the device's rows hold now
        self._last = 0

    def step(self, slots: Sequence[int]) -> OnTheWay:
        """One step of these slots: feed each its last token, pick the next."""
        size = next(size for size in self.sizes if size >= len(slots))
        graph = self._graphs.get(size) or self._capture(size)
        self._place([*slots, *[self._scratch] * (size - len(slots))])
        graph.replay()
        self._last = size
        return OnTheWay(self.launcher.buffers.out[: len(slots)])

    def sample(self, slots: Sequence[int], logits: Tensor) -> OnTheWay:
        """Pick a token for each slot from logits [len(slots), vocabulary]."""
        self._place(list(slots))
        self.launcher.sample(len(slots), logits.contiguous(), advance=False)
        return OnTheWay(self.launcher.buffers.out[: len(slots)])

    def logits(self, count: int) -> Tensor:
        """Logits of the last step's first rows, [count, vocabulary]."""
        b = self.launcher.buffers
        return (b.logits if self._last <= GEMV_ROWS else b.narrow)[:count]

    def warm_up(self, sizes: Sequence[int] | None = None) -> None:
        """Compile and capture batch sizes, largest first, so that the graphs share one pool."""
        for size in sorted(sizes or self.sizes, reverse=True):
            fitting = next(known for known in self.sizes if known >= size)
            if fitting not in self._graphs:
                self._capture(fitting)

    def _place(self, slots: list[int]) -> None:
        if slots == self._placed[: len(slots)]:
            return
        row = torch.tensor(slots, dtype=torch.int32).pin_memory()
        self.launcher.buffers.slots[: len(slots)].copy_(row, non_blocking=True)
        self._placed = slots + self._placed[len(slots) :]

    def _capture(self, size: int) -> torch.cuda.CUDAGraph:
        """Run the step once on scratch rows, which compiles its kernels, then record it."""
        self._place([self._scratch] * size)
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call,unused-ignore]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self.launcher.step(size)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            self.launcher.step(size)
        self._pool = self._pool or graph.pool()
        self._graphs[size] = graph
        return graph


def batch_sizes(slots: int) -> list[int]:
    """Batch sizes that get a graph: powers of two below the number of slots, and that number."""
    sizes = [1]
    while sizes[-1] * 2 < slots:
        sizes.append(sizes[-1] * 2)
    return sizes if sizes[-1] == slots else [*sizes, slots]
