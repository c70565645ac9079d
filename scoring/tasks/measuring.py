"""Measurement of a generative model on a batch: the logits of its first tokens."""

import copy
from collections.abc import Sequence
from itertools import count
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

_PLAIN = {"max_new_tokens": 2, "min_new_tokens": 2, "do_sample": False, "num_beams": 1, "num_return_sequences": 1}


class Always(LogitsProcessor):  # type: ignore[misc]
    """Makes `generate` take one token, whatever the model would choose."""

    def __init__(self, token: int) -> None:
        self._token = token

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        chosen = torch.full_like(scores, -torch.inf)
        chosen[:, self._token] = 0.0
        return chosen


def two_logits(
    model: Any, batch: dict[str, Tensor], defaults: GenerationConfig, pad_id: int, eos: Sequence[int]
) -> list[Tensor]:
    """Compute, per row of a padded batch, the logits of two tokens, [2, vocabulary]: by prefill, and by a cached step.

    `defaults` is the model's own generation config; no token of `eos` is taken.
    """
    config = copy.deepcopy(defaults)
    config.update(**_PLAIN, min_length=0, pad_token_id=pad_id, eos_token_id=list(eos) or None, stop_strings=None)
    config.update(return_dict_in_generate=True, output_logits=True)
    token = next(number for number in count(1) if number not in eos)
    made = model.generate(**batch, generation_config=config, logits_processor=LogitsProcessorList([Always(token)]))
    return list(torch.stack(made.logits, 1).float().cpu())
