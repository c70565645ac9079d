"""ZeRO-Inference on a CPU: the tokens of plain transformers, and a model that is whole again afterwards."""

import json
from dataclasses import replace

import pytest
import torch
import transformers

from scoring.api.service import Service
from scoring.config import Deployment, Optimisation
from scoring.distributed.process_group import leave
from scoring.model.loader import load_with
from scoring.passes.base import Facts, Hardware, PassRefused
from scoring.passes.registry import catalogue, reference_of
from scoring.passes.zero_inference import ZeroInference
from scoring.schema.registry import task_class
from tests.conftest import Tiny

pytestmark = pytest.mark.filterwarnings("ignore")  # DeepSpeed warns a lot

OPT = Facts("opt", "OPTForCausalLM", "decoder", 66_000_000_000, 132_000_000_000, 64, 72, 72, 9216)
H100 = Hardware("cuda", "NVIDIA H100", (9, 0), 80 << 30, 1, True)
CPU = Hardware("cpu", "cpu", (0, 0), 0, 0, False)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_decoder(tiny: Tiny, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny(family, "text-generation")
    model, plain = (transformers.AutoModelForCausalLM.from_pretrained(folder).eval() for _ in range(2))
    told = reference_of("text-generation")(model)
    each = ZeroInference(forced=True)
    with monkeypatch.context() as patch:  # a GPU that is too small cannot take the whole model for a moment either
        patch.setattr(type(model), "to", lambda *_, **__: pytest.fail("the model was moved as a whole"))
        applied = each.apply(model)
    assert applied.count == len(list(plain.parameters()))
    assert all(parameter.numel() == 0 for parameter in model.parameters())  # they wait elsewhere
    assert each.verify(model, told) < 1e-5
    ids = torch.randint(5, 60, (3, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    asked = {"attention_mask": mask, "max_new_tokens": 10, "do_sample": False, "pad_token_id": 0}
    with torch.inference_mode():
        assert torch.equal(model.generate(ids, **asked), plain.generate(ids, **asked))
    applied.undo()
    assert each.verify(model, told) < 1e-5
    assert not torch.distributed.is_initialized()
    assert sum(parameter.numel() for parameter in model.parameters()) == sum(p.numel() for p in plain.parameters())


def test_encoder(tiny: Tiny) -> None:
    folder = tiny("bert", "text-classification")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    told = reference_of("text-classification")(model)
    each = ZeroInference(forced=True)
    applied = each.apply(model)
    assert each.verify(model, told) < 1e-5
    applied.undo()


def test_served_through_the_loader(tiny: Tiny) -> None:
    """Forced in a deployment's settings: chosen before the weights are read, applied, verified, and told."""
    folder = tiny("opt", "text-generation")
    asked = Optimisation(on=("zero_inference",))
    deployment = Deployment(name="t", task="text-generation", optimisation=asked)
    loaded, chosen = load_with(catalogue(deployment), deployment, folder)
    service = Service(deployment, loaded, task_class("text-generation")(loaded, "text-generation"), {})
    service.start(chosen)
    states = service.metadata()["optimisations"]
    assert states["zero_inference"] == "applied"
    assert states["static_decode"] == "not taken"
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = loaded.tokenizer("hello", return_tensors="pt")
    wanted = plain.generate(**ids, max_new_tokens=5, do_sample=False)[0, ids["input_ids"].shape[1] :]
    reply = service.answer('{"inputs": "hello", "parameters": {"max_new_tokens": 5, "return_full_text": false}}')
    assert json.loads(reply.body)[0]["generated_text"] == loaded.tokenizer.decode(wanted, skip_special_tokens=True)  # type: ignore[arg-type]
    loaded.runtime.zero_engine.destroy()
    leave()


def test_failure_inside_deepspeed_is_a_refusal(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny("llama", "text-generation")).eval()
    monkeypatch.setattr(ZeroInference, "_config", lambda *_: {"zero_optimization": {"stage": 9}})
    with pytest.raises(PassRefused, match="DeepSpeed failed"):
        ZeroInference(forced=True).apply(model)
    assert not torch.distributed.is_initialized()


def test_decisions() -> None:
    each = ZeroInference()
    assert each.applies(OPT, H100, "latency").take
    assert "123 GiB" in each.applies(OPT, H100, "latency").reason
    assert "much faster" in each.applies(replace(OPT, weight_bytes=1 << 30), H100, "latency").reason
    assert not each.applies(OPT, CPU, "latency").take
    assert ZeroInference(forced=True).applies(OPT, CPU, "latency").take
