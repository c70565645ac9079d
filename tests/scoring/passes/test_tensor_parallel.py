"""Tensor slicing over two gloo ranks: the answers of plain transformers, and an end to waiting when a rank dies."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import transformers

from scoring.api.service import Service
from scoring.config import Deployment, Limits, Optimisation
from scoring.decoder.verify import DecoderReference
from scoring.errors import PassNotServed, RankLost
from scoring.model.loaded import Loaded
from scoring.passes.base import TOLERANCE, Applied, Facts, Hardware, PassRefused
from scoring.passes.registry import decoder_passes, reference_of
from scoring.passes.runner import choose
from scoring.passes.static_decode import StaticDecode
from scoring.passes.tensor_parallel import TensorParallel
from scoring.passes.zero_inference import ZeroInference
from scoring.schema.registry import task_class
from scoring.tensor_parallel import workers
from tests.conftest import Tiny
from tests.local_runner.conftest import bundle

__all__ = ["bundle"]  # a fixture

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("forked")]  # DeepSpeed warns a lot

LLAMA = Facts("llama", "LlamaForCausalLM", "decoder", 7_000_000_000, 14_000_000_000, 32, 32, 8, 4096)
ONE = Hardware("cuda", "NVIDIA H100", (9, 0), 80 << 30, 1, True)
TWO = replace(ONE, gpus=2)
SMALL = replace(TWO, gpus=8, memory_bytes=12 << 30, name="small")
CPU = Hardware("cpu", "cpu", (0, 0), 0, 0, False)

Sliced = tuple[Any, Any, Applied, TensorParallel]


def _decision(each: TensorParallel, facts: Facts, hardware: Hardware, objective: str = "latency") -> str:
    decision = each.applies(facts, hardware, objective)
    return ("take: " if decision.take else "") + decision.reason


@pytest.mark.parametrize(
    ("degree", "facts", "hardware", "reason"),
    [
        (2, LLAMA, TWO, "take: 2 ranks"),
        (2, LLAMA, CPU, "take: 2 ranks"),
        (2, LLAMA, ONE, "2 ranks need 2 GPUs; there is 1"),
        (3, LLAMA, SMALL, "32 attention heads cannot be divided over 3 ranks"),
        (16, LLAMA, replace(SMALL, gpus=16), "take: 16 ranks"),  # each of its 8 key-value heads twice
        (16, replace(LLAMA, kv_heads=6), replace(SMALL, gpus=16), "6 key-value heads cannot be divided over 16 ranks"),
        (4, replace(LLAMA, kv_heads=2, family="bert"), SMALL, "2 key-value heads cannot be divided over 4 ranks"),
        (1, LLAMA, TWO, "no slicing"),
        (0, LLAMA, ONE, "two GPUs"),
        (0, LLAMA, CPU, "two GPUs"),
        (0, LLAMA, TWO, "one GPU holds the weights"),
        (0, LLAMA, SMALL, "take: the weights need 2 GPUs"),
        (0, replace(LLAMA, weight_bytes=1 << 40), TWO, "not even 2 GPUs"),
        (0, replace(LLAMA, weight_bytes=2 << 30), TWO, "one GPU holds"),
        (0, replace(LLAMA, heads=7, kv_heads=7), TWO, "no degree up to 2"),
        (2, replace(LLAMA, family="gpt2"), TWO, "gpt2 cannot be sliced"),
        (2, replace(LLAMA, family="bloom"), TWO, "alibi"),
        (2, replace(LLAMA, family="phi3"), TWO, "one matrix"),
        (2, replace(LLAMA, family="falcon"), TWO, "key-value head"),
        (2, replace(LLAMA, family="t5"), TWO, "unproven"),
    ],
)
def test_decision(degree: int, facts: Facts, hardware: Hardware, reason: str) -> None:
    assert reason in _decision(TensorParallel(degree), facts, hardware)


def test_forcing_what_cannot_be_is_an_error_with_the_reason() -> None:
    with pytest.raises(PassNotServed, match="32 attention heads cannot be divided over 3 ranks"):
        choose([TensorParallel(3)], LLAMA, replace(TWO, gpus=4), Optimisation(on=("tensor_slicing",)))


def _chosen(settings: Optimisation, facts: Facts = LLAMA, hardware: Hardware = SMALL) -> dict[str, str]:
    limits = Limits(slots=4, context_length=1024)
    chosen = choose(decoder_passes(limits, settings), facts, hardware, settings)
    return {each.name: ("take: " if decision.take else "") + decision.reason for each, decision in chosen}


def test_the_static_decoder_serves_slices_and_counts_its_share_of_their_memory() -> None:
    told = _chosen(Optimisation())
    assert told["tensor_slicing"] == "take: the weights need 2 GPUs"
    assert (
        told["static_decode"] == "take: fused tier; up to 4 sequences of 1024 tokens in a paged cache on each of 2 GPUs"
    )
    asked = _chosen(Optimisation(tensor_parallel=2), hardware=TWO)
    assert asked["static_decode"].startswith("take")
    assert asked["weight_only"] == "take: int8 weights beside the 16-bit ones, one scale a row"
    assert "16-bit and int8 weights need 9.8 GiB together on each of 2 GPUs" in told["weight_only"]
    small = _chosen(Optimisation(tensor_parallel=2), replace(LLAMA, weight_bytes=5_000_000_000), TWO)
    assert small["weight_only"] == "2.5 GB of weights on each of 2 GPUs are read too fast for it to pay"
    few = _chosen(Optimisation(), replace(LLAMA, layers=1280), replace(SMALL, memory_bytes=9 << 30, gpus=2))
    assert "a cache of 1,024 tokens need 9.0 GiB on each of 2 GPUs" in few["static_decode"]
    assert not few["static_decode"].startswith("take")


def test_what_is_not_sliced_counts_the_whole_memory() -> None:
    told = _chosen(Optimisation(off=("tensor_slicing",)))
    assert "a cache of 1,024 tokens need 13.2 GiB; choose a larger GPU" in told["static_decode"]
    other = _chosen(Optimisation(), replace(LLAMA, family="qwen2_moe"))
    assert other["tensor_slicing"].startswith("take")
    assert other["static_decode"].startswith("take: generic tier")
    assert other["static_decode"].endswith("on each of 2 GPUs")


def _sliced(folder: Path, auto: str, task: str) -> tuple[Sliced, float]:
    model = getattr(transformers, auto).from_pretrained(folder, dtype=torch.float32).eval()
    plain = getattr(transformers, auto).from_pretrained(folder, dtype=torch.float32).eval()
    told = reference_of(task)(model)
    each = TensorParallel(2, call_s=20)
    applied = each.apply(model)
    return (model, plain, applied, each), each.verify(model, told)


class _After(transformers.StoppingCriteria):  # type: ignore[misc]
    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), input_ids.shape[1] >= self.length)


class TestDecoder:
    """One pair of ranks for all of it; the last test kills one."""

    @pytest.fixture(scope="class")
    def llama(self, tiny: Tiny) -> Iterator[tuple[Sliced, float]]:
        made = _sliced(tiny("llama", "text-generation"), "AutoModelForCausalLM", "text-generation")
        yield made
        made[0][2].undo()

    def test_generates_as_plain_transformers(self, llama: tuple[Sliced, float]) -> None:
        (model, plain, applied, _), error = llama
        assert error < 1e-5
        assert applied.count >= 7
        ids = torch.randint(5, 60, (3, 9), generator=torch.Generator().manual_seed(1))
        mask = torch.ones_like(ids)
        mask[1, :4] = 0
        asked: dict[str, Any] = {"attention_mask": mask, "max_new_tokens": 10, "do_sample": False, "pad_token_id": 0}
        assert torch.equal(model.generate(input_ids=ids, **asked), plain.generate(input_ids=ids, **asked))
        asked["num_beams"] = 3
        assert torch.equal(model.generate(ids, **asked), plain.generate(ids, **asked))
        with torch.inference_mode():
            assert torch.allclose(model(input_ids=ids).logits, plain(input_ids=ids).logits, atol=1e-5)

    def test_sampling_and_stops_stay_in_step(self, llama: tuple[Sliced, float]) -> None:
        (model, plain, _, _), _ = llama
        ids = torch.randint(5, 60, (1, 6), generator=torch.Generator().manual_seed(2))
        asked: dict[str, Any] = {"max_new_tokens": 24, "do_sample": True, "pad_token_id": 0, "eos_token_id": None}
        for stop_after in (24, 3):  # the others are told when rank 0 stops, or would wait for it at the next token
            answers = []
            for each in (model, plain):
                torch.manual_seed(5)
                stop = transformers.StoppingCriteriaList([_After(ids.shape[1] + stop_after)])
                answers.append(each.generate(input_ids=ids, stopping_criteria=stop, **asked))
            assert torch.equal(*answers)
            assert answers[0].shape[1] == ids.shape[1] + stop_after

    def test_a_rank_that_dies_ends_the_request(
        self, tiny: Tiny, llama: tuple[Sliced, float], bundle: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (model, _, applied, _), _ = llama
        folder = tiny("llama", "text-generation")
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        deployment = Deployment(name="t", task="text-generation")
        loaded = Loaded(model, tokenizer, torch.device("cpu"), 128, {})
        service = Service(deployment, loaded, task_class("text-generation")(loaded, "text-generation"), {})
        service.start()
        loaded.runtime.become([applied.made])
        monkeypatch.setattr("scoring.entry._service", service)
        serving = pytest.importorskip("tests.scenarios.fuzz.apps", reason="fastapi is not installed").serving
        with serving(bundle, service) as base, httpx.Client(base_url=base, trust_env=False, timeout=60) as http:
            assert http.post("/score", json={"inputs": "hello"}).status_code == 200
            assert http.get("/readyz").status_code == 200
            victim = applied.made.ranks.processes[0]
            threading.Timer(0.3, lambda: os.kill(victim.pid, signal.SIGKILL)).start()
            began, status = time.monotonic(), 200
            while status == 200 and time.monotonic() - began < 30:
                asked = {"inputs": "hello", "parameters": {"max_new_tokens": 60, "ignore_eos": True}}
                reply = http.post("/score", json=asked)
                status = reply.status_code
            assert (status, reply.json()["error"]["code"]) == (503, "rank_lost")
            assert "rank 1 of 2 ended" in reply.json()["error"]["message"]
            assert time.monotonic() - began < 25
            unready = http.get("/readyz")
            assert (unready.status_code, unready.json()["state"], unready.json()["phase"]) == (503, "failed", "failed")
            assert "The model can answer no more: rank 1 of 2 ended" in unready.json()["error"]["message"]
            assert http.post("/score", json={"inputs": "again"}).status_code == 503
        assert service.lost
        assert service.metadata()["ready"] is False


def test_encoder_and_undo(tiny: Tiny) -> None:
    folder = tiny("bert", "text-classification")
    (model, plain, applied, _), error = _sliced(folder, "AutoModelForSequenceClassification", "text-classification")
    assert error < 1e-5
    processes = applied.made.ranks.processes
    assert all(process.poll() is None for process in processes)
    applied.undo()
    assert all(process.poll() is not None for process in processes)
    ids = torch.randint(5, 60, (2, 9))
    with torch.inference_mode():
        assert torch.equal(model(input_ids=ids).logits, plain(input_ids=ids).logits)


def test_a_rank_that_cannot_start_is_refused(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny("llama", "text-generation")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    real = workers.new_shard_spec
    monkeypatch.setattr(workers, "new_shard_spec", lambda *a: replace(real(*a), folder=str(folder / "absent")))
    with pytest.raises(PassRefused, match="the ranks did not start"):
        TensorParallel(2, call_s=10).apply(model)
    ids = torch.randint(5, 60, (1, 9))
    with torch.inference_mode():
        assert model(input_ids=ids).logits.isfinite().all()


@pytest.mark.parametrize("each", [TensorParallel(2), ZeroInference(), StaticDecode()])
def test_what_16_bits_cost_by_themselves_is_no_fault_of_a_pass(each: Any) -> None:
    assert each.bound(lambda: DecoderReference([], [], 0.008)) == pytest.approx(0.01)
    assert each.bound(lambda: DecoderReference([], [], 0.0)) == TOLERANCE
    if each.name != "static_decode":  # encoders are compared with answers that tell of no such error
        assert each.bound(list) == TOLERANCE


def test_lost_is_an_error_of_its_own() -> None:
    assert (RankLost.http_status, RankLost.grpc_status) == (503, "UNAVAILABLE")
