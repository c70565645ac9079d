"""How an encoder is compared with plain transformers: small batches, padded ones included, live positions only."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

Batch = dict[str, Tensor]
#: Outputs with a position per token; the others have one answer per row.
PER_TOKEN = ("last_hidden_state", "start_logits", "end_logits")


def probes(model: Any, lengths: tuple[int, ...] = (23, 9, 1), seed: int = 0) -> list[Batch]:
    """Random batches for a model: one row without padding, then rows of `lengths` padded to the longest."""
    config = model.config
    pad = config.pad_token_id or 0
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for sizes in ((max(lengths),), lengths):
        ids = torch.randint(5, config.vocab_size, (len(sizes), max(sizes)), generator=generator)
        mask = (torch.arange(max(sizes)) < torch.tensor(sizes)[:, None]).long()
        batch = {"input_ids": torch.where(mask == 1, ids, pad), "attention_mask": mask}
        if getattr(config, "type_vocab_size", 0) > 1:
            batch["token_type_ids"] = mask * (torch.arange(max(sizes)) > max(sizes) // 2).long()
        batches.append({name: value.to(model.device) for name, value in batch.items()})
    return batches


def answers(model: Any, batch: Batch) -> dict[str, Tensor]:
    """The model's outputs in fp32, on the CPU, padded positions set to zero."""
    with torch.inference_mode():
        output = model(**batch)
    live = batch["attention_mask"].cpu() != 0
    found = {}
    for name, value in output.items():
        if isinstance(value, Tensor):
            value = value.float().cpu()
            if name in PER_TOKEN or value.dim() == 3:
                value = value * live.view(*live.shape, *[1] * (value.dim() - 2))
            found[name] = value
    return found


def reference(model: Any, batches: list[Batch] | None = None) -> Callable[[], list[tuple[Batch, dict[str, Tensor]]]]:
    """What plain transformers answers in fp32, computed now, before any pass changes the model."""
    batches = batches or probes(model)
    plain = model if model.dtype == torch.float32 else deepcopy(model).float()
    told = [(batch, answers(plain, batch)) for batch in batches]
    return lambda: told


def relative_error(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> float:
    """Largest |found - wanted| / |wanted| (2-norms) over the outputs; NaN or a missing output is NaN."""
    worst = 0.0
    for name, want in wanted.items():
        if name not in found:
            return float("nan")
        error = float((found[name] - want).norm() / want.norm().clamp_min(1e-12))
        if error != error:
            return error
        worst = max(worst, error)
    return worst


def verify_encoder(model: Any, told: Callable[..., Any]) -> float:
    """Largest relative error over the batches of a `reference`."""
    errors = [relative_error(answers(model, batch), wanted) for batch, wanted in told()]
    return max(errors, key=lambda error: float("inf") if error != error else error)
