"""Batches of mixed lengths in several calls: each row as if alone, and whole where nothing is gained."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from scoring.encoder import by_length
from scoring.encoder.verify import Batch, answers, probes, relative_error
from tests.scoring.encoder.encoder_models import SIZES, make

LENGTHS = (9, 3, 23, 3, 1, 22)
_QWEN = {"num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 0}


def together(model: Any) -> tuple[Callable[[], None], list[tuple[int, ...]]]:
    """Make a model's base run by length; the way back, and the shape of each call."""
    base = getattr(model, model.base_model_prefix, model)
    plain, shapes = base.forward, list[tuple[int, ...]]()

    def counted(*given: Any, **named: Any) -> Any:
        shapes.append(tuple(named["input_ids"].shape))
        return plain(*given, **named)

    vars(base)["forward"] = by_length.by_length(counted)
    return lambda: vars(base).pop("forward"), shapes


def alone(model: Any, batch: Batch) -> list[dict[str, torch.Tensor]]:
    rows = range(len(batch["input_ids"]))
    live = [batch["attention_mask"][row].bool() for row in rows]
    return [answers(model, {key: value[row : row + 1, live[row]] for key, value in batch.items()}) for row in rows]


@pytest.mark.parametrize(
    ("architecture", "config", "at_end"),
    [
        ("AlbertModel", SIZES | {"embedding_size": 64}, False),
        ("AlbertForTokenClassification", SIZES | {"embedding_size": 64}, False),
        ("Qwen3Model", SIZES | _QWEN, False),
        ("Qwen3Model", SIZES | _QWEN, True),
        ("Qwen3ForSequenceClassification", SIZES | _QWEN, True),
    ],
)
def test_each_row_as_if_alone(
    architecture: str, config: dict[str, Any], at_end: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(by_length, "_CALL", 3)
    model = make(architecture, config)
    batch = probes(model, LENGTHS, seed=3)[1]
    if at_end:
        batch = {
            key: torch.stack([row.roll(23 - length, -1) for row, length in zip(value, LENGTHS, strict=True)])
            for key, value in batch.items()
        }
    wanted = alone(model, batch)
    _, shapes = together(model)
    found = answers(model, batch)
    assert shapes == [(2, 23), (1, 9), (3, 3)]
    for row, want in enumerate(wanted):
        live = batch["attention_mask"][row].bool()
        for name, value in want.items():
            per_token = value.dim() == 3
            got = found[name][row : row + 1]
            assert relative_error({name: got[:, live] if per_token else got}, {name: value}) < 1e-5


def test_what_costs_less_than_a_call_stays_together() -> None:
    model = make("AlbertModel", SIZES | {"embedding_size": 64})
    _, shapes = together(model)
    for lengths, calls in (((23, 22), [(2, 23)]), ((9, 9, 9), [(3, 9)]), ((60, 1), [(2, 60)])):
        answers(model, probes(model, lengths)[1])
        assert shapes == calls
        shapes.clear()


def test_what_it_does_not_know_is_left_to_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_length, "_CALL", 3)
    model = make("AlbertModel", SIZES | {"embedding_size": 64})
    batch = probes(model, LENGTHS)[1]
    undo, shapes = together(model)
    with torch.inference_mode():
        assert len(model(**batch, output_hidden_states=True).hidden_states) == 3
        assert len(model(**batch, return_dict=False)) == 2
        batch["attention_mask"][1, 5] = 1  # padding within the row
        found = model(**batch).last_hidden_state
        undo()
        torch.testing.assert_close(found, model(**batch).last_hidden_state)
    assert shapes == [(6, 23)] * 3
