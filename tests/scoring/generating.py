"""The reference of the generative tasks, plain transformers one text at a time; and waiting for other threads."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

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


def until(condition: Callable[[], bool]) -> None:
    """Return when the condition holds; fail when it still does not after a while."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)
