"""Verification of passes that keep a model's transformers interface, and their undo, by loading again."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LogitsProcessor, LogitsProcessorList

from scoring.decoder.verify import DecoderReference
from scoring.encoder.verify import verify_encoder
from scoring.engine.batch_invariance import lend
from scoring.quantization.loading import from_pretrained
from scoring.sentence.judge import judge_of

_PREFILLED = 12  # tokens of each probe; the rest goes through cached steps


class Forced(LogitsProcessor):  # type: ignore[misc]
    """Makes `generate` follow given tokens, [T], whatever the model would choose."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        chosen = torch.full_like(scores, -math.inf)
        chosen[:, self.tokens[input_ids.shape[1]]] = 0.0
        return chosen


def verify_model(model: Any, reference: Callable[..., Any]) -> float:
    """Largest relative error (2-norms): of padded batches for encoders, of prefill and cached steps for decoders."""
    expected = reference()
    if not isinstance(expected, DecoderReference):
        return verify_encoder(model, reference)
    return max(
        (_decoder_error(model, *probe) for probe in zip(expected.ids, expected.logits, strict=True)), key=_nan_first
    )


def _decoder_error(model: Any, ids: list[int], reference: Tensor) -> float:
    first = min(_PREFILLED, len(ids) - 1)
    prompt = torch.tensor([ids[:first]], device=_device(model))
    with torch.inference_mode():
        output = model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=len(ids) - first,
            min_new_tokens=len(ids) - first,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=None,
            logits_processor=LogitsProcessorList([Forced(ids)]),
            output_logits=True,
            return_dict_in_generate=True,
        )
    logits = torch.cat(list(output.logits)).float().cpu()
    expected = reference[first - 1 : len(ids) - 1]
    errors = [
        float((f - w).norm() / w.norm().clamp_min(1e-12)) for f, w in ((logits[:1], expected[:1]), (logits, expected))
    ]
    return max(errors, key=_nan_first)


def _nan_first(error: float) -> float:
    return math.inf if error != error else error


def _device(model: Any) -> torch.device:
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def reload(model: Any) -> None:
    """Reload a model from its folder, in place, on the device that it was on."""
    judged = getattr(model.config, "judged_tokens", None)
    kind = type(model) if judged is None else AutoModelForCausalLM
    fresh = from_pretrained(kind, Path(model.name_or_path), dtype=model.dtype, local_files_only=True)
    if judged is not None:
        fresh = judge_of(fresh, *judged)
    fresh.to(_device(model)).eval()
    lend(fresh.config, getattr(model.config, "pad_token_id", None))
    vars(model).clear()
    vars(model).update(vars(fresh))
