"""The reference of the generative tasks, plain transformers one text at a time; and spies on what is served."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.scoring.conftest import Served
from tests.tiny_models import load_tiny

PROMPTS = (
    "The",
    "Hello there, how are you?",
    "Once upon a time there was a king who wanted to know everything about stars.",
    "Anna Müller lives in Zürich 😀",
    "12",
)

plain = lru_cache(maxsize=32)(load_tiny)


def continuation(folder: Path, task: str, text: str, *, seed: int | None = None, **options: Any) -> list[str]:
    """What `generate` appends to a text (or makes of it), greedily unless told otherwise: one text per sequence."""
    model, tokenizer = plain(folder, task)
    inputs = tokenizer(text, return_tensors="pt")
    start = 1 if model.config.is_encoder_decoder else inputs.input_ids.shape[1]
    if seed is not None:
        torch.manual_seed(seed)
    sequences = model.generate(
        input_ids=inputs.input_ids,
        attention_mask=inputs.attention_mask,
        **{"do_sample": False, "tokenizer": tokenizer} | options,
    )
    texts: list[str] = tokenizer.batch_decode(sequences[:, start:], skip_special_tokens=True)
    return texts


class Forwards:
    """The sizes of the batches that a task's forward was given."""

    def __init__(self, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        task = served.service.task
        forward = task.forward

        def spy(rows: Any, between: Any) -> Any:
            self.sizes.append(len(rows))
            return forward(rows, between)

        monkeypatch.setattr(task, "forward", spy)


class Steps:
    """Counts the model's forwards; `at` runs something before one of them."""

    def __init__(self, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.at: dict[int, Any] = {}
        model = served.service.loaded.model
        forward = model.forward

        def spy(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            self.at.pop(self.count, lambda: None)()
            return forward(*args, **kwargs)

        monkeypatch.setattr(model, "forward", spy)


def repeating(model: Any) -> Any:
    """A tiny model made to count mostly, seven tokens and again; what its layers add has it deviate now and then."""
    table = model.get_input_embeddings().weight.data
    table *= 5.6 / table.norm(dim=1, keepdim=True).clamp(min=1e-6)
    numbers = torch.arange(len(table) - len(table) % 7, device=table.device)
    head = torch.nn.Linear(table.shape[1], len(table), bias=False, device=table.device, dtype=table.dtype)
    head.weight.data = table.clone()
    head.weight.data[numbers - numbers % 7 + (numbers + 1) % 7] = table[: len(numbers)]
    model.set_output_embeddings(head)
    for name, parameter in model.named_parameters():
        if any(part in name for part in ("o_proj", "down_proj", "c_proj")):
            parameter.data *= 0.03
    return model
