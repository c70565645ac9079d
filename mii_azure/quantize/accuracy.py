"""Accuracy of quantised weights: a model's answers against the original's, both in float32, on the passes' probes."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mii_azure.errors import WeightsCorrupt
from mii_azure.model.profile import Profile
from mii_azure.model.safetensors import DTYPE_BYTES
from mii_azure.quantize.writer import blocks, products_of
from scoring.config import Deployment
from scoring.decoder import verify as decoder_verify
from scoring.encoder import verify as encoder_verify
from scoring.limits.memory_shares import LOADED
from scoring.model.loader import load
from scoring.quantization import compressed_tensors
from scoring.quantization.layout import Made
from scoring.schema.registry import task_schema

#: Maps a module's name and module, a parameter's name and its values, to the values to compute with.
Change = Callable[[str, str, Tensor], Tensor]


def output_error(
    original: Path, shipped: Path, task: str, facts: Profile, served: str, kind: Made
) -> tuple[float | None, str]:
    """Largest relative error (2-norms) over the outputs; or None, and the reason why nothing was compared.

    Both models are loaded, one after the other, if memory holds one in float32; else only the original, as stored,
    whose layers then compute in float32 one at a time, as they are and as shipped in type `served`. Raises
    LoadError for a folder that does not load, and WeightsCorrupt for answers that are not numbers.
    """
    free = decoder_verify.free_bytes(torch.device("cpu"))
    needed, least = (LOADED * size * facts.parameters for size in (4, DTYPE_BYTES[facts.dtype]))
    if needed <= free:
        expected = _answers(_load(original, task, "float32"), task)
        actual = _answers(_load(shipped, task, "float32"), task)
    elif least <= free:
        model = _load(original, task, facts.dtype)
        with _layer_by_layer(model, lambda module, name, value: value.float()):
            expected = _answers(model, task)
        with _layer_by_layer(model, _as_shipped(original, getattr(torch, served), kind)):
            actual = _answers(model, task)
    else:
        return None, f"that needs {least / 1e9:.1f} GB of memory and {free / 1e9:.1f} GB are free"
    error = encoder_verify.relative_error(actual, expected)
    if not math.isfinite(error):
        raise WeightsCorrupt(
            "The model answers with numbers that are not finite, in float32, quantised or not.",
            "Copy the weights again, or use another revision.",
        )
    return error, ""


def _load(folder: Path, task: str, dtype: str) -> Any:
    return load(Deployment("measured", task, dtype=dtype), folder, on_host=True).model


@contextmanager
def _layer_by_layer(model: nn.Module, change: Change) -> Iterator[None]:
    """Let each module compute in float32 with other values, which are in memory only during its forward pass."""
    kept: dict[int, list[Tensor]] = {}

    def before(name: str) -> Callable[..., Any]:
        def hook(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
            own = list(module.named_parameters(recurse=False))
            kept[id(module)] = [parameter.data for _, parameter in own]
            for key, parameter in own:
                parameter.data = change(name, key, parameter.data)
            # T5 casts inputs to the type of a product's weights before it.
            return tuple(x.float() if isinstance(x, Tensor) and x.is_floating_point() else x for x in given)

        return hook

    def after(module: nn.Module, *_: Any) -> None:
        for parameter, data in zip(module.parameters(recurse=False), kept.pop(id(module)), strict=True):
            parameter.data = data

    able = [(name, module) for name, module in model.named_modules() if list(module.parameters(recurse=False))]
    hooks = [module.register_forward_pre_hook(before(name)) for name, module in able]
    hooks += [module.register_forward_hook(after) for _, module in able]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _as_shipped(original: Path, served: torch.dtype, kind: Made) -> Change:
    """Weights of products as they would be read back from their shipped form, everything else unchanged."""
    products = products_of(original).made(kind)

    def change(module: str, name: str, value: Tensor) -> Tensor:
        wide = value.float()
        if products.module(f"{module}.{name}"):
            how = kind, products.group
            for block in blocks(wide):
                block.copy_(compressed_tensors.widen(*compressed_tensors.quantize(block, served, *how), torch.float32))
        return wide

    return change


def _answers(model: Any, task: str) -> dict[str, Tensor]:
    if not task_schema(task).generative:
        told = [encoder_verify.answers(model, batch) for batch in encoder_verify.probes(model)]
        return {f"{name} {number}": value for number, found in enumerate(told) for name, value in found.items()}
    logits = []
    for ids in decoder_verify.probes(model.config):
        fed = torch.tensor([ids])
        more = {"decoder_input_ids": fed} if model.config.is_encoder_decoder else {}
        with torch.inference_mode():
            logits.append(model(fed, **more).logits[0].float())
    return {"logits": torch.cat(logits)}
