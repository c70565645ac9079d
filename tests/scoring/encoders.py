"""What the tests of the encoder tasks share: families, texts of mixed lengths, references, comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, pipeline

from tests.tiny_models import FAMILIES, auto_class, load_tiny

ENCODERS = [name for name, family in FAMILIES.items() if family.kind == "encoder"]
TOLERANCE = 1e-4

#: From one token to most of the context of 128; accents, symbols and scripts that no tiny vocabulary has.
TEXTS = [
    "Paris",
    "Anna Müller lives in Zürich with her brother Paul and an old grey cat.",
    "  Two  spaces,\ttabs\nand new lines. ",
    "名前 😀 naïve\u200b café №5!",
    "The film was wonderful; the music, however, was terrible! " * 2,
]
#: Past the context of every tiny model.
LONG = "The river Aare runs through Bern. " * 40


def oracle(folder: Path, task: str) -> Any:
    """The Hugging Face pipeline over a folder, loaded by plain transformers."""
    model, tokenizer = load_tiny(folder, task)
    return pipeline(task, model=model, tokenizer=tokenizer, device="cpu")


def random_model(source: Path, task: str, folder: Path, **changes: Any) -> Path:
    """Write a random model with the task's head and `source`'s tokenizer; its config changed."""
    config = AutoConfig.from_pretrained(source, **changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        auto_class(task).from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


def assert_agree(actual: Any, expected: Any) -> None:
    """Same shape, labels, tokens and spans; numbers within the tolerance."""
    if isinstance(expected, dict):
        assert set(actual) == set(expected)
        for key, value in expected.items():
            assert_agree(actual[key], value)
    elif isinstance(expected, (list, tuple)):
        assert len(actual) == len(expected)
        for one, other in zip(actual, expected, strict=True):
            assert_agree(one, other)
    elif isinstance(expected, (str, int)) or expected is None:
        assert actual == expected
    else:
        assert abs(actual - float(expected)) < TOLERANCE, (actual, expected)
