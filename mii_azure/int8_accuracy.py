"""What int8 weights cost a model's answers: against the original, both in float32, on the probes of the passes."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mii_azure.errors import WeightsCorrupt
from scoring import decoder_checking
from scoring.config import Deployment
from scoring.loader import load
from scoring.passes import checking
from scoring.tasks import task_schema

_ROOM = 1.3  # of the weights in float32: what reading and answering take beside them


def output_error(original: Path, shipped: Path, task: str, parameters: int) -> tuple[float | None, str]:
    """Largest relative error (2-norms) over the outputs; or None, and why nothing was compared.

    One model is in memory at a time. Raises LoadError for a folder that does not load, and WeightsCorrupt for answers
    that are not numbers.
    """
    needed, free = _ROOM * 4 * parameters, decoder_checking.free_bytes(torch.device("cpu"))
    if needed > free:
        return None, f"float32 needs {needed / 1e9:.1f} GB of memory and {free / 1e9:.1f} GB are free"
    wanted = _answers(original, task)
    error = checking.relative_error(_answers(shipped, task), wanted)
    if not math.isfinite(error):
        raise WeightsCorrupt(
            "The model answers with numbers that are not finite, in float32, quantised or not.",
            "Copy the weights again, or use another revision.",
        )
    return error, ""


def _answers(folder: Path, task: str) -> dict[str, Tensor]:
    model = load(Deployment("measured", task), folder, on_host=True).model
    if model.config.is_encoder_decoder:
        return _translated(model)
    if task_schema(task).generative:
        return {"logits": torch.cat(decoder_checking.reference(model)().logits)}
    told = checking.reference(model)()
    return {f"{name} {number}": value for number, (_, found) in enumerate(told) for name, value in found.items()}


def _translated(model: Any) -> dict[str, Tensor]:
    """Logits of an encoder-decoder that reads and is fed the same random tokens."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, model.config.vocab_size, (1, 24), generator=generator)
    with torch.inference_mode():
        return {"logits": model(input_ids=ids, decoder_input_ids=ids).logits}
