"""Buckets, padding, cutting and eviction of graphed forwards, with a stand-in for the graph that recomputes."""

import threading
from typing import Any

import pytest
import torch

from scoring.encoder.buckets import longest_input
from scoring.encoder.cuda_graphs import Captured, GraphedForward
from scoring.encoder.verify import probes, reference, verify_encoder
from scoring.passes.cuda_graph import CudaGraph
from tests.scoring.encoder.encoder_models import COVERED, covered


class Replays:
    """What a CUDA graph does, on the CPU: recompute into the same output from the same static inputs."""

    def __init__(self, forward: Any, inputs: dict[str, torch.Tensor], output: Any) -> None:
        self._forward, self._inputs, self._output = forward, inputs, output
        self.dropped = False

    def replay(self) -> None:
        for name, value in self._forward(**self._inputs).items():
            self._output[name].copy_(value)

    def reset(self) -> None:
        self.dropped = True


class Event:
    def record(self) -> None: ...

    def synchronize(self) -> None: ...


class OnCpu(GraphedForward):
    """A graphed forward whose graphs are `Replays`."""

    def _capture(self, shape: tuple[int, int], names: tuple[str, ...]) -> Captured:
        static = torch.zeros(len(names), *shape, dtype=torch.int64)
        self._reset(static, names)
        inputs = {name: static[index] for index, name in enumerate(names)}
        output = self._forward(**inputs)
        staging = static.clone()
        graph = Replays(self._forward, inputs, output)
        return Captured(graph, static, staging, Event(), output, {True: list(static), False: list(staging)})


@pytest.mark.parametrize("name", COVERED)
def test_padded_up_and_cut_back(name: str) -> None:
    model = covered(name)
    told = reference(model)  # batches of 1 and 3, length 23: the buckets are 1 and 4, length 32
    model.forward = OnCpu(model, model.forward)
    assert verify_encoder(model, told) < 1e-5
    assert verify_encoder(model, list_reversed(told)) < 1e-5  # and again, over what the first calls left behind
    assert len(model.forward) == 2


def list_reversed(told: Any) -> Any:
    return lambda: told()[::-1]


def test_padding_of_an_earlier_batch_is_gone() -> None:
    model = covered("roberta tokens")
    plain = model.forward
    model.forward = OnCpu(model, plain)
    long, short = (probes(model, (length,), seed=length)[0] for length in (31, 17))
    with torch.inference_mode():
        model(**long)
        torch.testing.assert_close(model(**short).logits, plain(**short).logits, rtol=1e-4, atol=1e-5)


def test_shapes_outside_the_buckets_run_plainly() -> None:
    model = covered("bert embeddings")
    graphed = OnCpu(model, model.forward, lengths=(16,), batches=(1, 2))
    assert graphed.bucket(2, 16) == (2, 16)
    assert graphed.bucket(1, 3) == (1, 16)
    assert graphed.bucket(3, 16) is graphed.bucket(1, 17) is None
    ids = torch.randint(5, 99, (3, 20))
    assert graphed(input_ids=ids).last_hidden_state.shape == (3, 20, 64)
    graphed(input_ids=ids[:1, :9], position_ids=torch.arange(9)[None])
    assert len(graphed) == 0


def test_no_bucket_is_longer_than_the_model() -> None:
    bert, roberta = covered("bert embeddings"), covered("roberta tokens")
    assert longest_input(bert.config) == 66
    assert longest_input(roberta.config) == 64
    assert OnCpu(roberta, roberta.forward).bucket(1, 64) == (1, 64)
    assert OnCpu(roberta, roberta.forward).bucket(1, 65) is None
    assert OnCpu(bert, bert.forward).bucket(1, 65) == (1, 66)


def test_least_recently_used_graph_is_dropped() -> None:
    model = covered("bert embeddings")
    graphed = OnCpu(model, model.forward, lengths=(8, 16, 32), batches=(1,), limit=2)
    graphed.warm([(1, 8), (1, 16)])
    first, second = list(graphed._graphs.values())
    graphed.warm([(1, 8), (1, 32)])
    assert [key[1] for key in graphed._graphs] == [8, 32]
    assert second.graph.dropped
    assert not first.graph.dropped


def test_another_thread_runs_plainly() -> None:
    model = covered("bert embeddings")
    graphed = OnCpu(model, model.forward)
    graphed.warm([(1, 16)])
    thread = threading.Thread(target=graphed.warm, args=([(4, 32)],))
    thread.start()
    thread.join()
    assert len(graphed) == 1


def test_a_forward_that_cannot_be_captured_runs_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refuses(OnCpu):
        def _capture(self, shape: tuple[int, int], names: tuple[str, ...]) -> Captured:
            raise RuntimeError("Cannot copy between CPU and CUDA tensors during CUDA graph capture\nmore")

    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    model = covered("bert embeddings")
    told = reference(model)
    model.forward = Refuses(model, model.forward)
    assert verify_encoder(model, told) < 1e-6
    assert model.forward.refused == "Cannot copy between CPU and CUDA tensors during CUDA graph capture"


def test_undo_restores_what_was_there() -> None:
    model = covered("bert embeddings")
    CudaGraph().apply(model).undo()
    assert "forward" not in vars(model)
    before = model.forward = lambda **_: None
    CudaGraph().apply(model).undo()
    assert model.forward is before


def test_what_is_warmed_at_the_start_is_what_requests_use() -> None:
    model = covered("bert embeddings")
    graphed = OnCpu(model, model.forward)
    model.forward = graphed
    CudaGraph().warm(model)
    captured = len(graphed)
    assert captured == len(graphed._lengths) - 1 + len(graphed._batches) - 1  # the table's own length is no bucket's
    ids = torch.randint(5, 99, (1, 11))
    graphed(input_ids=ids, attention_mask=torch.ones_like(ids), token_type_ids=torch.zeros_like(ids))
    assert len(graphed) == captured
