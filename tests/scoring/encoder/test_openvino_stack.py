"""Encoders by OpenVINO: batches in two halves at once, padding, and models that it cannot compile."""

from typing import Any

import numpy as np
import pytest
import torch

from scoring.encoder import cpu_autotune, openvino_inputs, openvino_stack
from scoring.encoder.verify import probes
from scoring.passes import cpu
from scoring.passes.base import PassRefused
from tests.scoring.encoder.encoder_models import covered


@pytest.mark.parametrize("lengths", [(7, 7, 3, 3, 3, 7), (2, 9), (1, 1, 1, 8), (8, 0, 0), (5,)])
def test_halves_at_once_are_the_batch(lengths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch of two rows and more is cut where half of its tokens are; each row's answer is that of one call."""
    pytest.importorskip("openvino")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(openvino_stack, "_GAIN", 0.0)
    model = covered("bert embeddings")
    batch = probes(model, [max(1, length) for length in lengths], seed=3)[1]
    for row, length in enumerate(lengths):
        batch["attention_mask"][row, length:] = 0
    way = cpu_autotune.prepare(model, "float32")
    assert way.means.endswith("halves at once")
    way.on()
    wanted = model(**batch).last_hidden_state
    rows: list[int] = []
    begin = openvino_stack.OpenVinoStack._begin

    def counted(self: Any, request: Any, ids: torch.Tensor, *rest: Any) -> Any:
        rows.append(len(ids))
        return begin(self, request, ids, *rest)

    monkeypatch.setattr(openvino_stack.OpenVinoStack, "_begin", counted)
    monkeypatch.setattr(openvino_stack, "_PAYS", 1)
    torch.testing.assert_close(model(**batch).last_hidden_state, wanted, rtol=1e-5, atol=1e-5)
    assert sum(rows) == len(lengths)
    assert len(rows) == min(2, len(lengths))


def test_halves_that_gain_nothing_are_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(openvino_stack, "_GAIN", float("inf"))
    assert cpu_autotune.prepare(covered("roberta tokens"), "float32").means == ", by OpenVINO"


def test_padding_behind_the_longest_row_costs_no_attention() -> None:
    """Rows of 2 and 3 tokens in a batch of 6 columns, the first column of the second row being padding."""
    tokens = np.array([0, 1, 7, 8, 9, 0])  # the last rounds up
    inputs = openvino_inputs.places(tokens, 5, (2, 6), 1)
    assert inputs["places"].tolist() == [[[0, 3, 0, 0]], [[0, 6, 9, 12]]]
    assert (inputs["mask"] == 0).tolist() == [[[[True, True, False, False]]], [[[False, True, True, True]]]]
    assert inputs["tokens"].ravel().tolist() == [0, 1, 5, 6, 7, 0]


def test_what_openvino_cannot_compile_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that lacks what its flags promise, or a library of another build: the plain model serves."""
    pytest.importorskip("openvino")
    from scoring.encoder import openvino_graph

    def fails(*_: object) -> None:
        raise RuntimeError("Exception from src/core.cpp:99:\nunsupported instruction set")

    monkeypatch.setattr(openvino_graph, "compiled", fails)
    monkeypatch.setattr(cpu_autotune, "missing", lambda precision, flags: "")
    model = covered("bert embeddings")
    with pytest.raises(PassRefused, match="no float32: OpenVINO compiles no such model: unsupported instruction set"):
        cpu.Cpu(precisions=("float32",)).apply(model)
    assert not any("forward" in vars(module) for module in model.modules())
