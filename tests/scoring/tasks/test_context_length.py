"""How many tokens a model takes, when only the model can say."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from scoring.model.loader import _context_length
from tests.conftest import Tiny
from tests.scoring.conftest import Serve
from tests.scoring.encoders import ENCODERS
from tests.tiny_models import CONTEXT, load_tiny

TASK = "feature-extraction"
SILENT = SimpleNamespace(model_max_length=10**30)  # what transformers says where the folder says nothing


@pytest.mark.parametrize("family", ENCODERS)
def test_context_length_is_what_the_model_takes(family: str, tiny: Tiny) -> None:
    model, _ = load_tiny(tiny(family, TASK), TASK)
    length = _context_length(model, SILENT, None)
    assert length == CONTEXT
    with torch.no_grad():
        assert model(input_ids=torch.full((1, length), 5))[0].shape[1] == length
        if family != "deberta-v2":  # its positions are relative: only its config sets a bound
            with pytest.raises((IndexError, RuntimeError)):
                model(input_ids=torch.full((1, length + 1), 5))


def test_the_tokenizer_may_say_less(tiny: Tiny) -> None:
    model, _ = load_tiny(tiny("bert", TASK), TASK)
    assert _context_length(model, SimpleNamespace(model_max_length=100), None) == 100
    assert _context_length(model, SimpleNamespace(model_max_length=512), None) == CONTEXT


@pytest.mark.parametrize("family", ENCODERS)
def test_a_text_of_exactly_the_context_is_served(family: str, tiny: Tiny, serve: Serve) -> None:
    served = serve(tiny(family, TASK), TASK)
    tokenizer = served.service.loaded.tokenizer
    text = "a"
    while len(tokenizer(text)["input_ids"]) < CONTEXT:
        text += " a"
    assert len(tokenizer(text)["input_ids"]) == CONTEXT
    assert len(served.ok(text)[0]) == CONTEXT
    error = served.refused(["a", f"{text} a"])
    assert (error["code"], error["where"]) == ("prompt_too_long", "inputs[1]")
    assert f"{CONTEXT + 1} tokens" in error["message"] and str(CONTEXT) in error["message"]
    assert "truncation" in error["hint"]
