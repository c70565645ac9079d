"""Plain transformers' own answers to one sequence, by the calls that `generate` makes."""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from scoring.decoder.generic.recurrent import cache_name, keeps_states, takes_positions


@torch.inference_mode()
def plain_logits(model: Any, ids: list[int], start: int) -> Tensor:
    """Logits [T, vocabulary] after each token; from `start` on by cached steps, if layers keep recurrent states.

    Some of them compute a step otherwise than the same token within a prompt.
    """
    tokens = torch.tensor([ids], device=model.device)
    if not keeps_states(model.config):
        whole: Tensor = model(tokens).logits[0]
        return whole
    cache = {cache_name(model): DynamicCache(config=model.config)}
    found: list[Tensor] = []
    for part in torch.split(tokens, [min(start, len(ids)), *[1] * (len(ids) - start)], 1):
        held = sum(len(each) for each in found)
        positions = torch.arange(held, held + part.shape[1], device=model.device)[None]
        placed = {"position_ids": positions} if takes_positions(model) else {}
        found.append(model(part, use_cache=True, **placed, **cache).logits[0])
    return torch.cat(found)
