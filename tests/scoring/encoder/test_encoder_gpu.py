"""Encoder passes on a CUDA device, against plain transformers in fp32."""

import shutil
from typing import Any

import pytest
import torch

from scoring.encoder.cuda_graphs import GraphedForward
from scoring.encoder.deepspeed import ROWS
from scoring.encoder.ops import TorchOps
from scoring.encoder.verify import probes, reference, verify_encoder
from scoring.passes.base import TOLERANCE, PassRefused
from scoring.passes.compile import Compile
from scoring.passes.cuda_graph import CudaGraph
from scoring.passes.deepspeed_kernels import DeepSpeedKernels
from scoring.passes.fused_encoder import FusedEncoder
from scoring.passes.w8a8 import W8A8
from tests.scoring.encoder.encoder_models import COVERED, POST_NORM, make

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

SIZES: dict[str, Any] = {
    "hidden_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
    "max_position_embeddings": 514,
    "vocab_size": 999,
    "initializer_range": 0.05,
}
LENGTHS = (200, 128, 65, 64, 9, 1)


def on_gpu(name: str) -> Any:
    architecture, tiny = COVERED[name]
    if "dim" in tiny:
        config = {"dim": 256, "n_layers": 3, "n_heads": 4, "hidden_dim": 1024, "vocab_size": 999}
    else:
        config = tiny | SIZES | ({"embedding_size": 256} if "embedding_size" in tiny else {})
    return make(architecture, config).half().cuda()


@pytest.mark.parametrize("name", COVERED)
def test_fused_encoder_alone_and_graphed(name: str) -> None:
    model = on_gpu(name)
    told = reference(model, probes(model, LENGTHS))
    FusedEncoder().apply(model)
    assert verify_encoder(model, told) < TOLERANCE
    CudaGraph().apply(model)
    assert verify_encoder(model, told) < TOLERANCE
    fresh = FusedEncoder()
    assert fresh.verify(model, told) < TOLERANCE


def test_graphs_are_right_on_new_inputs_from_host_and_device() -> None:
    model = on_gpu("bert classification")
    first, second = (probes(model, LENGTHS, seed) for seed in (1, 2))
    told, anew = reference(model, first), reference(model, second)
    FusedEncoder().apply(model)
    CudaGraph().apply(model)
    assert verify_encoder(model, told) < TOLERANCE
    assert verify_encoder(model, anew) < TOLERANCE
    on_host = [({key: value.cpu() for key, value in batch.items()}, wanted) for batch, wanted in anew()]
    assert verify_encoder(model, lambda: on_host) < TOLERANCE


def test_stock_graph_and_bounded_memory() -> None:
    model = on_gpu("roberta tokens")
    told = reference(model, probes(model, LENGTHS))
    model.forward = GraphedForward(model, model.forward, limit=2)
    assert verify_encoder(model, told) < TOLERANCE
    shapes = [(batch, length) for batch in (1, 2, 4) for length in (16, 64, 128)]
    model.forward.warm(shapes)
    before = torch.cuda.memory_reserved()
    for _ in range(3):
        model.forward.warm(shapes)
    assert len(model.forward) == 2
    assert torch.cuda.memory_reserved() <= before + (64 << 20)
    assert verify_encoder(model, told) < TOLERANCE


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="DeepSpeed builds its kernels with nvcc")
@pytest.mark.parametrize("name", ["bert fill-mask", "roberta tokens", "xlm-roberta embeddings"])
def test_deepspeed_kernels(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cuda")  # the CPU tests choose the other one
    pytest.importorskip("deepspeed")
    model = on_gpu(name)
    told = reference(model, probes(model, LENGTHS))
    plain = verify_encoder(model, told)
    many = reference(model, probes(model, (30,) * (ROWS + 3)))
    applied = DeepSpeedKernels().apply(model)
    assert applied.count == 3
    assert verify_encoder(model, told) < TOLERANCE
    assert verify_encoder(model, many) < TOLERANCE
    applied.undo()
    assert verify_encoder(model, told) == pytest.approx(plain)


def test_compile_keeps_only_what_is_faster() -> None:
    model = make("MPNetModel", SIZES | {"pad_token_id": 1}).half().cuda()
    told = reference(model, probes(model, (128, 20)))
    try:
        applied = Compile().apply(model)
    except PassRefused as refused:
        assert "for the graph alone" in str(refused)
        return
    assert "compiling took" in applied.detail
    assert verify_encoder(model, told) < TOLERANCE
    applied.undo()
    assert "forward" not in vars(model)


@pytest.mark.parametrize("name", POST_NORM)
def test_eight_bits_are_those_of_plain_torch(name: str) -> None:
    model = on_gpu(name)
    told = reference(model, probes(model, LENGTHS))
    fused = FusedEncoder()
    fused.apply(model)
    stack = fused.stack
    assert stack is not None
    exact = fused.verify(model, told)
    times = iter((2.0, 1.0))
    W8A8(fused, timer=lambda *_: next(times)).apply(model)
    ours = verify_encoder(model, told)
    graphed = CudaGraph().apply(model)
    assert verify_encoder(model, told) == pytest.approx(ours, rel=0.2)
    graphed.undo()
    stack.ops = TorchOps()
    assert verify_encoder(model, told) == pytest.approx(ours, rel=0.5)
    assert exact < ours < W8A8.tolerance


def test_eight_bits_are_kept_where_they_are_faster() -> None:
    """At this size nothing is: the pass says so, with both times."""
    model = on_gpu("bert embeddings")
    fused = FusedEncoder()
    fused.apply(model)
    try:
        applied = W8A8(fused).apply(model)
    except PassRefused as refused:
        assert "ms in 16 bits" in str(refused)
        return
    assert " ms for 32 sequences of 128 tokens" in applied.detail
