"""Inductor over a whole forward: compilation, and timing inside CUDA graphs."""

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor

from scoring.encoder.cuda_graphs import GraphedForward
from scoring.passes.base import GAIN, PassRefused


def compile_forward(model: Any, shapes: Sequence[tuple[int, int]]) -> tuple[str, Callable[[], None]]:
    """Compile a model's forward for some shapes; return its speed-up and an undo.

    Raises PassRefused, with both times, if the compiled forward is no faster inside a graph.
    """
    plain = model.forward
    began = time.perf_counter()
    compiled = torch.compile(plain, dynamic=False, options={"freezing": True})
    known = set(shapes)

    def forward(**batch: Any) -> Any:
        ids = batch.get("input_ids")
        return (compiled if isinstance(ids, Tensor) and tuple(ids.shape) in known else plain)(**batch)

    alone, beside = (milliseconds(model, each, shapes[0]) for each in (plain, forward))
    seconds = time.perf_counter() - began
    if alone < beside * GAIN:
        torch.compiler.reset()
        raise PassRefused(
            f"compiled {beside:.2f} ms against {alone:.2f} ms for the graph alone; compiling took {seconds:.0f} s"
        )
    model.forward = forward

    def undo() -> None:
        del model.forward
        torch.compiler.reset()

    detail = f"{alone:.2f} to {beside:.2f} ms inside a graph; compiling took {seconds:.0f} s"
    return detail, undo


def milliseconds(model: Any, forward: Callable[..., Any], shape: tuple[int, int]) -> float:
    """Median milliseconds to replay a graph of `forward` for a (batch, length) of random tokens without padding."""
    ids = torch.randint(5, model.config.vocab_size, shape).to(model.device)
    graphed = GraphedForward(model, forward, lengths=shape[1:], batches=shape[:1])
    times = []
    for _ in range(30):
        torch.cuda.synchronize()
        began = time.perf_counter()
        graphed(input_ids=ids, attention_mask=torch.ones_like(ids))
        torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return 1e3 * median(times[5:])
