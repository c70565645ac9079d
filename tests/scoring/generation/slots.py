"""Served models whose decoder has few slots, and what watches its steps."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from scoring.config import Limits
from scoring.decoder.decoder import Decoder
from scoring.engine.row import Row
from tests.scoring.conftest import Served

TASK = "text-generation"
SLOTS = 4
LONG = "Once upon a time there was a king who wanted to know everything about stars. " * 2

Ask = dict[str, Any]


def slotted(folder: Path, tokens: int = 0, **limits: Any) -> Served:
    served = Served(folder, TASK, Limits(**limits))
    loaded = served.service.loaded
    loaded.runtime.decoder = Decoder(loaded.model, SLOTS, loaded.context_length, tokens=tokens)
    return served


class Steps:
    """Counts the decoder's steps and notes which slots each advanced; `hold` keeps the thread before a step."""

    def __init__(self, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
        self.batches: list[list[int]] = []
        self.prompts: list[list[int]] = []  # per prefill, the tokens of each slot
        self.go = threading.Event()
        self.go.set()
        self.poison = -1  # a slot whose steps fail
        decoder = served.service.loaded.runtime.decoder
        step, prefill = decoder.step, decoder.prefill_many

        def spy(slots: Any) -> Any:
            self.batches.append(list(slots))
            assert self.go.wait(30)
            if self.poison in slots:
                raise RuntimeError("secret of the house")
            return step(slots)

        def spy_prefill(parts: Any) -> Any:
            self.prompts.append([len(ids) for _, ids in parts])
            return prefill(parts)

        monkeypatch.setattr(decoder, "step", spy)
        monkeypatch.setattr(decoder, "prefill_many", spy_prefill)


def rows(served: Served, text: str, **parameters: Any) -> list[Row]:
    task = served.service.task
    return task.encode(text, task.schema.parse_parameters(parameters), 0)


def forever(served: Served) -> Row:
    """A row that generates a hundred tokens."""
    [row] = rows(served, "The", max_new_tokens=100, ignore_eos=True)
    return row
