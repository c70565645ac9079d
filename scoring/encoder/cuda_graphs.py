"""Whole forwards as CUDA graphs, one per bucket of (batch, length); a replay costs one launch instead of hundreds."""

import logging
import threading
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoring.encoder.buckets import BATCHES, LENGTHS, longest_input
from scoring.encoder.verify import PER_TOKEN

logger = logging.getLogger("mii_azure.passes")

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


@dataclass
class Captured:
    """One graph with its static inputs [inputs, b, s], pinned staging of the same shape, and static outputs."""

    graph: Any  # torch.cuda.CUDAGraph
    static: Tensor
    staging: Tensor
    copied: Any  # torch.cuda.Event after which the staging buffer may be rewritten
    output: Any
    full: dict[bool, list[Tensor]]  # by "inputs lie on the device": static's or staging's parts, one per input


class GraphedForward:
    """A model's forward that replays the graph of the bucket that its batch fits, and runs plainly if none does.

    Inputs may lie on the CPU (copied through pinned memory in one transfer) or on the device. Outputs are views of
    the graph's own memory: they hold until the next call. Graphs are captured on the thread that makes the first
    call; calls from other threads run plainly, and so does every call once a capture has failed (`refused`).
    At most `limit` graphs are kept, the least recently used goes first.
    """

    def __init__(
        self,
        model: Any,
        forward: Callable[..., Any],
        lengths: Sequence[int] = LENGTHS,
        batches: Sequence[int] = BATCHES,
        limit: int = 32,
    ) -> None:
        self._model = model
        self._forward = forward
        self.longest = longest_input(model.config)
        self._lengths = sorted({min(length, self.longest) for length in lengths})
        self._batches = sorted(batches)
        self._limit = limit
        self._graphs: OrderedDict[tuple[int, int, tuple[str, ...]], Captured] = OrderedDict()
        self._pool: Any = None
        self._stream: Any = None
        self._typed = int(getattr(model.config, "type_vocab_size", 0) or 0) > 1
        self.refused = ""  # reason why nothing is captured
        self._thread: int | None = None

    def __len__(self) -> int:
        return len(self._graphs)

    def bucket(self, batch: int, length: int) -> tuple[int, int] | None:
        """The smallest bucket that holds a batch, or None."""
        at_batch, at_length = bisect_left(self._batches, batch), bisect_left(self._lengths, length)
        if at_batch == len(self._batches) or at_length == len(self._lengths):
            return None
        return self._batches[at_batch], self._lengths[at_length]

    def warm(self, shapes: Sequence[tuple[int, int]]) -> None:
        """Capture the graphs of these (batch, length) shapes now, on this thread."""
        vocabulary = self._model.config.vocab_size
        for batch, length in shapes:
            ids = torch.randint(0, vocabulary, (batch, length)).to(self._model.device)
            types = {"token_type_ids": torch.zeros_like(ids)} if self._typed else {}
            self(input_ids=ids, attention_mask=torch.ones_like(ids), **types)

    def __call__(self, **batch: Any) -> Any:
        with torch.inference_mode():
            given = {name: value for name, value in batch.items() if value is not None}
            ids = given.get("input_ids")
            shape = self.bucket(*ids.shape) if isinstance(ids, Tensor) and ids.dim() == 2 else None
            if shape is None or not self._plain(given) or not self._own_thread():
                return self._forward(**{name: _to(value, self._model.device) for name, value in batch.items()})
            if "attention_mask" not in given:
                given["attention_mask"] = torch.ones_like(given["input_ids"])
            captured = self._captured(shape, tuple(name for name in INPUTS if name in given))
            if captured is None:
                return self._forward(**{name: _to(value, self._model.device) for name, value in batch.items()})
            self._fill(captured, given)
            captured.graph.replay()
            return cut(captured.output, shape, tuple(given["input_ids"].shape))

    def _plain(self, given: dict[str, Any]) -> bool:
        shape = given["input_ids"].shape
        return all(name in INPUTS and value.shape == shape for name, value in given.items())

    def _own_thread(self) -> bool:
        self._thread = self._thread or threading.get_ident()
        return self._thread == threading.get_ident()

    def _captured(self, shape: tuple[int, int], names: tuple[str, ...]) -> Captured | None:
        key = (*shape, names)
        if self.refused:
            return None
        if key in self._graphs:
            self._graphs.move_to_end(key)
            return self._graphs[key]
        while len(self._graphs) >= self._limit:
            self._graphs.popitem(last=False)[1].graph.reset()
        try:
            self._graphs[key] = self._capture(shape, names)
        except RuntimeError as error:  # some forwards copy from the host or synchronise
            torch.cuda.synchronize()
            self.refused = str(error).strip().splitlines()[0]
            logger.warning("the forward cannot be captured and runs plainly: %s", self.refused)
            return None
        return self._graphs[key]

    def _capture(self, shape: tuple[int, int], names: tuple[str, ...]) -> Captured:
        device = self._model.device
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        staging = torch.zeros(len(names), *shape, dtype=torch.int64).pin_memory()
        self._reset(staging, names)
        staging[names.index("attention_mask"), :, : max(1, shape[1] // 2)] = (
            1  # a mask with padding, so that the model takes no shortcut
        )
        static = staging.to(device)
        inputs = {name: static[index] for index, name in enumerate(names)}
        # One stream for every capture: memory cached for one stream is not reused by another.
        self._stream = side = self._stream or torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            for _ in range(2):
                self._forward(**inputs)
        torch.cuda.current_stream(device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=side, capture_error_mode="thread_local"):
            output = self._forward(**inputs)
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record()
        return Captured(graph, static, staging, copied, output, {True: list(static), False: list(staging)})

    def _reset(self, target: Tensor, names: tuple[str, ...]) -> None:
        """Fill inputs with padding; each row keeps one live token, so that no softmax is empty."""
        target.zero_()
        target[names.index("input_ids")] = self._model.config.pad_token_id or 0
        target[names.index("attention_mask"), :, 0] = 1

    def _fill(self, captured: Captured, given: dict[str, Tensor]) -> None:
        names = [name for name in INPUTS if name in given]
        rows, length = given["input_ids"].shape
        on_device = given["input_ids"].device.type == "cuda"
        if not on_device:
            captured.copied.synchronize()
        parts = captured.full[on_device]
        if given["input_ids"].shape != captured.static.shape[1:]:
            self._reset(captured.static if on_device else captured.staging, tuple(names))
            parts = [part[:rows, :length] for part in parts]
        torch._foreach_copy_(parts, [given[name] for name in names])  # one launch on the device
        if not on_device:
            captured.static.copy_(captured.staging, non_blocking=True)
            captured.copied.record()


def _to(value: Any, device: Any) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


def cut(output: Any, bucket: tuple[int, int], shape: tuple[int, int]) -> Any:
    """Cut a bucket's output to the batch: its rows, and its positions if the output has them."""
    if bucket == shape:
        return output
    parts = {}
    for name, value in output.items():
        if isinstance(value, Tensor):
            per_token = name in PER_TOKEN or value.dim() == 3
            value = value[: shape[0], : shape[1]] if per_token else value[: shape[0]]
        parts[name] = value
    return type(output)(**parts)
