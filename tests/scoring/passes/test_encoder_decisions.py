"""What each encoder pass decides on paper, for hardware that is not here."""

from dataclasses import replace

import pytest

from scoring.passes.base import Facts, Hardware, Pass
from scoring.passes.compile import Compile
from scoring.passes.cuda_graph import CudaGraph
from scoring.passes.deepspeed_kernels import DeepSpeedKernels
from scoring.passes.fused_encoder import FusedEncoder

BERT = Facts("bert", "BertForMaskedLM", "encoder", 110_000_000, 220_000_000, 12, 12, 12, 768)
GPT2 = replace(BERT, family="gpt2", architecture="GPT2LMHeadModel", kind="decoder")

H100 = Hardware("cuda", "NVIDIA H100 80GB HBM3", (9, 0), 80 << 30, 1, True)
A100 = replace(H100, name="NVIDIA A100", capability=(8, 0))
V100 = replace(H100, name="Tesla V100", capability=(7, 0), memory_bytes=16 << 30)
M60 = replace(H100, name="Tesla M60", capability=(5, 2), memory_bytes=8 << 30)
CPU = Hardware("cpu", "cpu", (0, 0), 0, 0, False)
NO_NVCC = replace(H100, nvcc=False)


def family(name: str, **changes: object) -> Facts:
    return replace(BERT, family=name, **changes)  # type: ignore[arg-type]


DECISIONS = [
    (FusedEncoder(), BERT, H100, True, "with programmatic launch"),
    (FusedEncoder(), BERT, A100, True, "without programmatic launch"),
    (FusedEncoder(), BERT, NO_NVCC, True, "seven kernels"),
    (FusedEncoder(), BERT, V100, False, "has 7.0"),
    (FusedEncoder(), BERT, CPU, False, "NVIDIA GPU"),
    (FusedEncoder(), family("roberta"), H100, True, ""),
    (FusedEncoder(), family("xlm-roberta"), H100, True, ""),
    (FusedEncoder(), family("distilbert"), H100, True, ""),
    (FusedEncoder(), family("electra"), H100, True, ""),
    (FusedEncoder(), family("mpnet"), H100, True, ""),
    (FusedEncoder(), family("deberta-v2"), H100, True, ""),
    (FusedEncoder(), family("modernbert"), H100, True, ""),
    (FusedEncoder(), family("deberta"), H100, False, "disentangled"),
    (FusedEncoder(), family("albert"), H100, False, "share"),
    (FusedEncoder(), family("nomic_bert"), H100, False, "nomic_bert is not covered"),
    (FusedEncoder(), family("bert", hidden_size=780), H100, False, "heads of 65"),
    (FusedEncoder(), GPT2, H100, False, "not one"),
    (DeepSpeedKernels(), BERT, H100, True, ""),
    (DeepSpeedKernels(), BERT, V100, True, ""),
    (DeepSpeedKernels(), family("xlm-roberta"), H100, True, ""),
    (DeepSpeedKernels(), BERT, NO_NVCC, False, "nvcc"),
    (DeepSpeedKernels(), BERT, M60, False, "older"),
    (DeepSpeedKernels(), BERT, CPU, False, "NVIDIA GPU"),
    (DeepSpeedKernels(), family("distilbert"), H100, False, "distilbert stays wrong"),
    (DeepSpeedKernels(), GPT2, H100, False, "gpt2 stays wrong"),
    (DeepSpeedKernels(), family("bloom", kind="decoder"), H100, False, "4.43.4"),
    (DeepSpeedKernels(), family("gpt_neo", kind="decoder"), H100, False, "cached decoding"),
    (DeepSpeedKernels(), family("qwen3", kind="decoder"), H100, False, "no kernels for qwen3"),
    (CudaGraph(), BERT, H100, True, "32 shapes"),
    (CudaGraph(), family("deberta-v2"), V100, True, ""),
    (CudaGraph(), BERT, CPU, False, "NVIDIA GPU"),
    (CudaGraph(), GPT2, H100, False, "decoders"),
    (Compile(), BERT, H100, False, "fused_encoder is faster"),
    (Compile(), BERT, V100, True, "beats"),
    (Compile(), family("albert"), H100, True, "beats"),
    (Compile(), BERT, M60, False, "older"),
    (Compile(), BERT, CPU, False, "GPUs"),
    (Compile(), GPT2, H100, False, "step"),
]


@pytest.mark.parametrize("objective", ["latency", "cost"])
@pytest.mark.parametrize(("each", "facts", "hardware", "take", "reason"), DECISIONS)
def test_decision(each: Pass, facts: Facts, hardware: Hardware, take: bool, reason: str, objective: str) -> None:
    decision = each.applies(facts, hardware, objective)
    assert decision.take is take
    assert reason in decision.reason
    assert decision.reason


def test_this_machine_is_described() -> None:
    import torch

    here = Hardware.here()
    assert here.device == ("cuda" if torch.cuda.is_available() else "cpu")
    assert here.gpus == torch.cuda.device_count()
