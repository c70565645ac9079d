"""Inductor for encoders that have no kernels of ours, kept only where it beats the CUDA graph alone by measurement."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from scoring.passes import fused_encoder
from scoring.passes.base import Applied, Decision, Facts, Hardware, Pass, PassRefused
from scoring.passes.checking import verify_encoder
from scoring.passes.cuda_graph import GraphedForward

GAIN = 1.03  # less is noise


class Compile(Pass):
    """Compiles the forward for a few shapes; the other shapes stay plain. Put `cuda_graph` on top."""

    name = "compile"
    public = True

    def __init__(self, shapes: Sequence[tuple[int, int]] = ((1, 128),), cache: Path | None = None) -> None:
        self._shapes = tuple(shapes)
        self._cache = cache

    def applies(self, facts: Facts, hardware: Hardware, objective: str) -> Decision:
        if hardware.device != "cuda":
            return Decision(False, "this pass compiles for GPUs; the cpu pass has its own")
        if facts.kind != "encoder":
            return Decision(False, "decoders compile their step, not the forward")
        if hardware.capability < (7, 0):
            return Decision(False, f"Inductor's kernels need compute capability 7.0; {hardware.name} is older")
        if fused_encoder.FusedEncoder().applies(facts, hardware, objective).take:
            return Decision(False, "fused_encoder is faster for this family")
        return Decision(True, "no kernels of ours for this family: kept if it beats the CUDA graph alone here")

    def apply(self, model: Any) -> Applied:
        """Raises PassRefused, with both times, where the compiled forward is no faster inside a graph."""
        if self._cache is not None:
            load_cache(self._cache, model)
        plain = model.forward
        began = time.perf_counter()
        compiled = torch.compile(plain, dynamic=False, options={"freezing": True})
        shapes = set(self._shapes)

        def forward(**batch: Any) -> Any:
            ids = batch.get("input_ids")
            return (compiled if isinstance(ids, Tensor) and tuple(ids.shape) in shapes else plain)(**batch)

        alone, beside = (_milliseconds(model, each, self._shapes[0]) for each in (plain, forward))
        seconds = time.perf_counter() - began
        if alone < beside * GAIN:
            torch.compiler.reset()
            raise PassRefused(
                f"compiled {beside:.2f} ms against {alone:.2f} ms for the graph alone; compiling took {seconds:.0f} s"
            )
        if self._cache is not None:
            save_cache(self._cache, model)
        model.forward = forward

        def undo() -> None:
            del model.forward
            torch.compiler.reset()

        detail = f"{alone:.2f} to {beside:.2f} ms inside a graph; compiling took {seconds:.0f} s"
        return Applied(len(self._shapes), detail, undo)

    def verify(self, model: Any, reference: Callable[..., Any]) -> float:
        return verify_encoder(model, reference)


def _milliseconds(model: Any, forward: Callable[..., Any], shape: tuple[int, int]) -> float:
    """Median time of one replay of a graph of `forward`."""
    ids = torch.randint(5, model.config.vocab_size, shape, device=model.device)
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
