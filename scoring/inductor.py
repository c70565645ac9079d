"""Inductor over a whole forward: compile, compare inside CUDA graphs, ship the compiled code."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from scoring.graphs import GraphedForward
from scoring.passes.base import PassRefused

GAIN = 1.03  # less is noise


def compile_forward(
    model: Any, shapes: Sequence[tuple[int, int]], cache: Path | None
) -> tuple[str, Callable[[], None]]:
    """Compile a model's forward for some shapes; return what it gained and what undoes it.

    Raises PassRefused, with both times, where the compiled forward is no faster inside a graph.
    """
    if cache is not None:
        load_cache(cache, model)
    plain = model.forward
    began = time.perf_counter()
    compiled = torch.compile(plain, dynamic=False, options={"freezing": True})
    known = set(shapes)

    def forward(**batch: Any) -> Any:
        ids = batch.get("input_ids")
        return (compiled if isinstance(ids, Tensor) and tuple(ids.shape) in known else plain)(**batch)

    alone, beside = (_milliseconds(model, each, shapes[0]) for each in (plain, forward))
    seconds = time.perf_counter() - began
    if alone < beside * GAIN:
        torch.compiler.reset()
        raise PassRefused(
            f"compiled {beside:.2f} ms against {alone:.2f} ms for the graph alone; compiling took {seconds:.0f} s"
        )
    if cache is not None:
        save_cache(cache, model)
    model.forward = forward

    def undo() -> None:
        del model.forward
        torch.compiler.reset()

    detail = f"{alone:.2f} to {beside:.2f} ms inside a graph; compiling took {seconds:.0f} s"
    return detail, undo


def _milliseconds(model: Any, forward: Callable[..., Any], shape: tuple[int, int]) -> float:
    """Median time of one replay of a graph of `forward`."""
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


def cache_name(model: Any) -> str:
    """File name of the compiled code: it holds for one GPU type, one torch and one model shape."""
    gpu = torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else "cpu"
    config = model.config
    size = sum(parameter.numel() for parameter in model.parameters())
    parts = (gpu, torch.__version__, type(model).__name__, config.model_type, str(size), str(model.dtype)[6:])
    return "-".join("".join(c if c.isalnum() or c == "." else "_" for c in part) for part in parts) + ".inductor"


def save_cache(folder: Path, model: Any) -> None:
    """Write what Inductor compiled so far, to be shipped beside the model."""
    saved = torch.compiler.save_cache_artifacts()
    if saved is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / cache_name(model)).write_bytes(saved[0])


def load_cache(folder: Path, model: Any) -> bool:
    """Read what `save_cache` wrote for this GPU, torch and model; False where there is none."""
    path = folder / cache_name(model)
    if not path.is_file():
        return False
    torch.compiler.load_cache_artifacts(path.read_bytes())
    return True
