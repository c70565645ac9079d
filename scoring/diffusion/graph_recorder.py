"""Functions over fixed buffers as CUDA graphs, in one pool of memory, captured on the thread that calls."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

KEPT = 6  # shapes, least recently used first to go


class Recorder:
    """Turns a function over fixed buffers into a graph; off CUDA the function itself is used."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.device = device
        self._pool: Any = None
        self._stream: Any = None

    def record(self, function: Callable[[], Any]) -> Callable[[], Any]:
        """Run the function twice, which searches cuDNN's convolutions too, then capture it; the result replays."""
        if not self.cuda:
            return function
        with torch.inference_mode():
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            self._stream = side = self._stream or torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream(self.device))
            search, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
            try:
                with torch.cuda.stream(side):
                    for _ in range(2):
                        function()
            finally:
                torch.backends.cudnn.benchmark = search
            torch.cuda.current_stream(self.device).wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool, stream=side, capture_error_mode="thread_local"):
                function()
        return graph.replay


class Replayed:
    """A function of one tensor, with a graph per shape; at most `KEPT` shapes are kept."""

    def __init__(self, recorder: Recorder, function: Callable[[Tensor], Tensor]) -> None:
        self._recorder, self._function = recorder, function
        self._known: OrderedDict[Any, tuple[Tensor, list[Tensor], Callable[[], Any]]] = OrderedDict()

    def __call__(self, given: Tensor) -> Tensor:
        """The function's result, in memory of its own."""
        if not self._recorder.cuda:
            return self._function(given)
        if given.shape not in self._known:
            while len(self._known) >= KEPT:
                self._known.popitem(last=False)
            static = given.to(self._recorder.device, copy=True)
            kept: list[Tensor] = []

            def run() -> None:
                kept[:] = [self._function(static)]

            self._known[given.shape] = (static, kept, self._recorder.record(run))
        static, kept, replay = self._known[given.shape]
        self._known.move_to_end(given.shape)
        static.copy_(given)
        replay()
        return kept[0].clone()
