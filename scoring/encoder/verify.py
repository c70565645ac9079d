"""Comparison of an encoder with plain transformers: small batches, live positions only, each row as if alone.

A padded batch is compared only if plain transformers answers its rows as it answers them alone; if padding or
neighbours change them, no such batch is served, and none is compared.
"""

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from scoring.encoder.buckets import longest_input
from scoring.engine.batch_invariance import ROUNDING

Batch = dict[str, Tensor]
#: Outputs with a position per token; the others have one answer per row.
PER_TOKEN = ("last_hidden_state", "start_logits", "end_logits")


def probes(model: Any, lengths: tuple[int, ...] = (23, 9, 1), seed: int = 0) -> list[Batch]:
    """Random batches for a model: one row without padding, then rows of `lengths` padded to the longest.

    A model of few positions gets rows that fit them.
    """
    config = model.config
    lengths = tuple(min(length, max(1, longest_input(config))) for length in lengths)
    pad = config.pad_token_id or 0
    first = min(5, config.vocab_size - 1)
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for sizes in ((max(lengths),), lengths):
        ids = torch.randint(first, config.vocab_size, (len(sizes), max(sizes)), generator=generator)
        mask = (torch.arange(max(sizes)) < torch.tensor(sizes)[:, None]).long()
        batch = {"input_ids": torch.where(mask == 1, ids, pad), "attention_mask": mask}
        if getattr(config, "type_vocab_size", 0) > 1:
            batch["token_type_ids"] = mask * (torch.arange(max(sizes)) > max(sizes) // 2).long()
        batches.append({name: value.to(model.device) for name, value in batch.items()})
    return batches


def answers(model: Any, batch: Batch) -> dict[str, Tensor]:
    """Outputs of the model in fp32, on the CPU, padded positions set to zero."""
    with torch.inference_mode():
        output = model(**batch)
    live = batch["attention_mask"].cpu() != 0  # [B, S]
    outputs = {}
    for name, value in output.items():
        if isinstance(value, Tensor):
            value = value.float().cpu()
            if _per_token(name, value):
                value = value * live.view(*live.shape, *[1] * (value.dim() - 2))
            outputs[name] = value
    return outputs


def reference(model: Any, batches: list[Batch] | None = None) -> Callable[[], list[tuple[Batch, dict[str, Tensor]]]]:
    """Answers of plain transformers in fp32 to each row alone, computed now, before any pass changes the model."""
    plain = model if model.dtype == torch.float32 else deepcopy(model).float()
    expected = []
    for batch in batches or probes(model):
        rows = [_row(batch, index) for index in range(len(batch["input_ids"]))]
        alone = [answers(plain, row) for row in rows]
        whole = _padded(alone, batch)
        if _same_together(plain, batch, whole):
            expected.append((batch, whole))
        else:
            expected += zip(rows, alone, strict=True)
    return lambda: expected


def _row(batch: Batch, index: int) -> Batch:
    """One row without the padding at its end."""
    length = int(batch["attention_mask"][index].nonzero().max()) + 1
    return {name: value[index : index + 1, :length] for name, value in batch.items()}


def _padded(alone: list[dict[str, Tensor]], batch: Batch) -> dict[str, Tensor]:
    """Outputs of rows stacked as those of one batch, zeros at its padding."""
    width = batch["input_ids"].shape[1]
    outputs = {}
    for name in alone[0]:
        parts = [each[name] for each in alone]
        if _per_token(name, parts[0]):
            parts = [torch.cat([p, p.new_zeros(1, width - p.shape[1], *p.shape[2:])], 1) for p in parts]
        outputs[name] = torch.cat(parts)
    return outputs


def _same_together(plain: Any, batch: Batch, whole: Mapping[str, Tensor]) -> bool:
    try:
        return relative_error(answers(plain, batch), whole) <= ROUNDING[torch.float32]
    except Exception:  # a forward that takes one row only
        return False


def _per_token(name: str, value: Tensor) -> bool:
    return name in PER_TOKEN or value.dim() == 3


def relative_error(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """Largest |actual - expected| / |expected| (2-norms) over the outputs; NaN or a missing output is NaN."""
    worst = 0.0
    for name, tensor in expected.items():
        if name not in actual:
            return float("nan")
        error = float((actual[name] - tensor).norm() / tensor.norm().clamp_min(1e-12))
        if error != error:
            return error
        worst = max(worst, error)
    return worst


def verify_encoder(model: Any, reference: Callable[..., Any]) -> float:
    """Largest relative error over the batches of a `reference`."""
    errors = [relative_error(answers(model, batch), expected) for batch, expected in reference()]
    return max(errors, key=lambda error: float("inf") if error != error else error)
