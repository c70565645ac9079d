"""A `FusedStack` that OpenVINO runs on a CPU, with no work on padding outside attention.

The table of words, often the largest matrix, stays torch's: OpenVINO would hold another copy of it.
"""

import time
from collections.abc import Mapping, Sequence
from importlib import util
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from scoring.encoder.calibration import spans
from scoring.encoder.cpu_ops import BFLOAT16, INT8, ROWS, bfloat16_pays
from scoring.encoder.openvino_inputs import Array, absolute, places, read_by_attention
from scoring.encoder.ops import TorchOps
from scoring.encoder.stack import FusedStack
from scoring.passes.base import PassRefused

_HALVES = 2
_PAYS = 512  # live tokens from which two halves at once may beat one call of all threads
_TRIED, _TRIES = 32, 5  # tokens of a row of the batch on which they are tried, and how often
_GAIN = 1.05  # a smaller one is noise


def installed() -> bool:
    """Return True if the package is installed."""
    return util.find_spec("openvino") is not None


class OpenVinoStack(FusedStack):
    """A stack in a number format; int8 is calibrated on batches of real text.

    Large batches run as two halves at once, each on half the threads, which then meet once instead of after each
    operation, where that is faster: some machines wake both on one core. OpenVINO holds the weights once more for it.
    Raises PassRefused if OpenVINO cannot compile it.
    """

    def __init__(self, stack: FusedStack, precision: str, texts: Sequence[Mapping[str, Tensor]] = ()) -> None:
        from scoring.encoder.openvino_graph import EncoderGraph, compiled

        super().__init__(stack.tables, [], stack.heads, stack.act, TorchOps())
        seen = spans(stack, texts) if precision == INT8 else None
        narrow = precision == BFLOAT16 or (precision == INT8 and bfloat16_pays())
        threads, graph = torch.get_num_threads(), EncoderGraph(stack, seen)
        self._positions = graph.positions
        try:
            self._request = compiled(graph, threads, narrow).create_infer_request()
            both = compiled(graph, threads, narrow, _HALVES) if threads % _HALVES == 0 else None
            self._halves = [both.create_infer_request() for _ in range(_HALVES)] if both else []
        except RuntimeError as error:
            raise PassRefused(f"OpenVINO compiles no such model: {str(error).strip().splitlines()[-1]}") from error
        if self._halves and not self._halves_pay():
            self._halves = []

    @property
    def halved(self) -> bool:
        """True if large batches run as two halves at once."""
        return bool(self._halves)

    def _halves_pay(self) -> bool:
        """Time a batch in halves against one call; a round's two calls are compared, as others may share the cores."""
        table = self.tables.positions
        length = _TRIED if table is None else min(_TRIED, len(table) // _HALVES)  # some tables begin behind the padding
        ids = torch.ones(max(_HALVES, _PAYS // length), length, dtype=torch.long)
        gains = []
        for _ in range(_TRIES):
            took = []
            for parts in ([slice(None)], [slice(len(ids) // _HALVES), slice(len(ids) // _HALVES, None)]):
                began = time.perf_counter()
                self._run(parts, ids, None, None)
                took.append(time.perf_counter() - began)
            gains.append(took[0] / took[1])
        return median(gains) >= _GAIN

    def __call__(self, ids: Tensor, mask: Tensor | None, types: Tensor | None) -> Tensor:
        lengths = np.full(len(ids), ids.shape[1]) if mask is None else mask.numpy().sum(1)
        parts = [slice(None)]
        if self._halves and len(ids) > 1 and lengths.sum() >= _PAYS:
            before = int((lengths.cumsum()[:-1] * 2 < lengths.sum()).sum())  # rows that end in the first half of tokens
            middle = min(1 + before, len(ids) - 1)
            parts = [slice(middle), slice(middle, None)]
        return self._run(parts, ids, mask, types)

    def _run(self, parts: Sequence[slice], ids: Tensor, mask: Tensor | None, types: Tensor | None) -> Tensor:
        """Hidden states of rows in one part or two at once."""
        begun = []
        for part, request in zip(parts, self._halves if len(parts) > 1 else [self._request], strict=True):
            some, kinds = (None if each is None else each[part] for each in (mask, types))
            begun.append(self._begin(request, ids[part], some, kinds))
        found = [self._end(*each) for each in begun]
        return found[0] if len(found) == 1 else torch.cat(found)

    def _begin(self, request: Any, ids: Tensor, mask: Tensor | None, types: Tensor | None) -> tuple[Any, ...]:
        """Start a request; it, what it reads, the live places, and the batch's shape."""
        batch, length = ids.shape
        given = ids.numpy()
        live = np.arange(batch * length) if mask is None else mask.numpy().ravel().nonzero()[0]
        if len(live) == 0:
            return None, {}, live, ids.shape
        tokens = np.concatenate([live, np.repeat(live[:1], -len(live) % ROWS)])  # [T], places in [B * S]
        inputs = places(tokens, len(live), ids.shape, self.heads)
        inputs["words"] = F.embedding(torch.from_numpy(given.ravel()[tokens]), self.tables.words).numpy()
        inputs |= read_by_attention(self._positions.inputs, self._positions.distances, inputs["places"].shape[-1])
        if self.tables.positions is not None:
            inputs["positions"] = absolute(given, self.tables.pad)[tokens].astype(np.int32)
        if self.tables.types is not None:
            kinds = np.zeros(len(tokens)) if types is None else types.numpy().ravel()[tokens]
            inputs["types"] = kinds.astype(np.int32)
        request.start_async(inputs, share_inputs=True)
        return request, inputs, live, ids.shape

    def _end(self, request: Any, _: Mapping[str, Array], live: Array, shape: tuple[int, int]) -> Tensor:
        """Wait for a request; its hidden states at their places."""
        (batch, length), width = shape, self.tables.words.shape[1]
        if request is None:
            return self.tables.words.new_zeros(batch, length, width)
        request.wait()
        found = torch.from_numpy(request.get_output_tensor(0).data)
        if len(live) == batch * length:
            return found[: len(live)].view(batch, length, -1).clone()  # the next call writes where this one's lies
        out = found.new_zeros(batch * length, width)
        out[torch.from_numpy(live)] = found[: len(live)]
        return out.view(batch, length, -1)
