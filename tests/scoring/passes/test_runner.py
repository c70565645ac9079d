"""Passes are chosen, verified and recorded; what fails is undone, named, and not served."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from scoring.config import Limits, Optimisation, PassDecision
from scoring.encoder.ops import TorchOps
from scoring.errors import LoadError, PassNotServed
from scoring.passes.base import Applicability, Applied, Facts, Hardware, Pass
from scoring.passes.compile import Compile
from scoring.passes.fused_encoder import FusedEncoder
from scoring.passes.registry import decoder_passes, encoder_passes
from scoring.passes.runner import BRIEF, choose, tell_differences
from scoring.passes.static_decode import StaticDecode
from scoring.passes.w8a8 import W8A8
from tests.scoring.passes.scaled import ASK, BERT, CPU, H100, T4, Breaking, Crashing, Refusing, Scaled, Tiny, service

LLAMA = Facts("llama", "LlamaForCausalLM", "decoder", 135_000_000, 540_000_000, 30, 9, 3, 576)


def test_a_right_pass_is_applied_and_told(bert: Path) -> None:
    made = service(bert, "text-classification", [Scaled(1.0)])
    facts = made.metadata()
    assert facts["optimisations"] == {"scaled": "applied"}
    record = facts["passes"][0]
    assert record["error"] < 1e-5
    assert record["replaced"] == 1
    assert record["seconds"] > 0


@pytest.mark.parametrize("factor", [1.1, float("nan"), float("inf")])
def test_a_wrong_pass_is_dropped_and_the_model_serves_without_it(bert: Path, factor: float) -> None:
    plain = service(bert, "text-classification", []).answer(ASK)
    made = service(bert, "text-classification", [Scaled(factor)])
    assert made.metadata()["optimisations"] == {"scaled": "dropped"}
    assert "differs from plain transformers" in made.records[0].reason
    assert made.answer(ASK) == plain
    assert made.answer('{"mii_azure": "metadata"}').status == 200


@pytest.mark.parametrize(
    ("faulty", "state"), [(Refusing(1.0), "refused"), (Breaking(1.0), "dropped"), (Crashing(1.0), "dropped")]
)
def test_a_pass_that_fails_is_named_and_the_others_go_on(bert: Path, faulty: Pass, state: str) -> None:
    plain = service(bert, "text-classification", []).answer(ASK)
    made = service(bert, "text-classification", [faulty, Scaled(1.0)])
    assert made.metadata()["optimisations"] == {faulty.name: state, "scaled": "applied"}
    assert made.answer(ASK) == plain


@pytest.mark.parametrize("passes", [[Refusing(1.0)], [Breaking(1.0)]])
def test_a_forced_pass_that_is_not_served_is_an_error(bert: Path, passes: list[Pass]) -> None:
    with pytest.raises(PassNotServed, match=f"The pass {passes[0].name} was forced on"):
        service(bert, "text-classification", passes, on=(passes[0].name,))


@pytest.mark.parametrize("affine", [True, False])
def test_opt_without_affine_norms_starts(affine: bool, tiny: Tiny, tmp_path: Path) -> None:
    """As OPT-350M's kin are published: the norms have neither weight nor bias, and a private key is not set."""
    import json as text

    from transformers import AutoTokenizer, OPTConfig, OPTForCausalLM

    source = tiny("opt", "text-generation")
    config = OPTConfig.from_pretrained(source, layer_norm_elementwise_affine=affine)
    OPTForCausalLM(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(source).save_pretrained(tmp_path)
    told = text.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    told.pop("_remove_final_layer_norm", None)
    (tmp_path / "config.json").write_text(text.dumps(told), encoding="utf-8")
    body = '{"inputs": ["Hello", "The end"], "parameters": {"max_new_tokens": 6}}'
    plain = service(tmp_path, "text-generation", []).answer(body)
    made = service(tmp_path, "text-generation", [StaticDecode(slots=2, max_length=64)], hardware=CPU)
    assert made.metadata()["optimisations"] == {"static_decode": "applied"}
    instead = "in the generic tier after all: OPT whose norms have neither weight nor bias"
    assert (instead in made.records[0].reason) != affine
    assert made.answer(body) == plain


def test_forced_off_is_off(bert: Path) -> None:
    made = service(bert, "text-classification", [Scaled(3.0)], off=("scaled",))
    assert made.records[0].reason == "switched off"


def taken(hardware: Hardware, **settings: Any) -> dict[str, str]:
    chosen = choose(encoder_passes(), BERT, hardware, Optimisation(**settings))
    return {each.name: decision.reason for each, decision in chosen if decision.take}


def test_what_is_chosen_on_paper() -> None:
    assert set(taken(H100)) == {"fused_encoder", "cuda_graph"}
    assert set(taken(H100, profile="public")) == {"deepspeed_kernels", "cuda_graph"}
    assert set(taken(T4)) == {"deepspeed_kernels", "cuda_graph"}
    assert set(taken(CPU)) == {"cpu"}
    assert set(taken(CPU, profile="public")) == set()
    assert set(taken(H100, on=("deepspeed_kernels",))) == {"deepspeed_kernels", "cuda_graph"}
    assert set(taken(H100, off=("fused_encoder", "cuda_graph"))) == {"deepspeed_kernels"}


def test_a_process_that_answers_few_requests_times_nothing_unless_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BRIEF, "1")
    for forced, taken in (((), False), (("cpu",), True)):
        chosen = choose(encoder_passes(), BERT, CPU, Optimisation(on=forced))
        assert {each.name: decision.take for each, decision in chosen}["cpu"] is taken


@pytest.mark.parametrize(
    ("limits", "forced", "expected"),
    [
        (Limits(), (), set()),
        (Limits(), ("static_decode",), {"static_decode"}),
        (Limits(batch_invariant=True), (), {"static_decode"}),  # which promises what plain transformers does not
        (Limits(kv_cache_dtype="fp8"), (), {"static_decode"}),
    ],
)
def test_a_decoder_that_answers_few_requests_on_a_cpu_starts_plain_unless_more_is_asked(
    limits: Limits, forced: tuple[str, ...], expected: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Optimisation(on=forced)
    monkeypatch.delenv(BRIEF, raising=False)
    many = choose(decoder_passes(limits, asked), LLAMA, CPU, asked)
    assert "static_decode" in {each.name for each, decision in many if decision.take}
    monkeypatch.setenv(BRIEF, "1")
    few = choose(decoder_passes(limits, asked), LLAMA, CPU, asked)
    assert {each.name for each, decision in few if decision.take} == expected


def test_a_process_that_answers_few_requests_tries_no_batches(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BRIEF, "1")
    served = service(bert, "text-classification", [])
    assert served.metadata()["batching"]["rows"] == "one row at a time"
    assert served.answer(ASK).status == 200


def test_every_pass_says_why_it_is_not_taken() -> None:
    for hardware in (H100, T4, CPU):
        for _, decision in choose(encoder_passes(), BERT, hardware, Optimisation()):
            assert decision.reason


def test_forcing_what_cannot_be_or_does_not_exist() -> None:
    with pytest.raises(PassNotServed, match="need an NVIDIA GPU"):
        taken(CPU, on=("cuda_graph",))
    with pytest.raises(LoadError, match=r"no pass 'cuda_grph'.*cuda_graph"):
        taken(H100, off=("cuda_grph",))


class FusedInTorch(FusedEncoder):
    """The stack's arithmetic in plain torch, which takes heads of any size."""

    def applies(self, facts: Facts, hardware: Hardware, objective: str) -> Applicability:
        return Applicability(True, "plain torch")


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_the_fused_stack_serves_the_same_answers(family: str, tiny: Tiny) -> None:
    folder = tiny(family, "token-classification")
    body = '{"inputs": ["My name is John.", "Anna"], "parameters": {"aggregation_strategy": "simple"}}'
    plain = service(folder, "token-classification", []).answer(body)
    made = service(folder, "token-classification", [FusedInTorch(TorchOps())])
    assert made.metadata()["optimisations"] == {"fused_encoder": "applied"}
    for mine, theirs in zip(json.loads(made.answer(body).body), json.loads(plain.body), strict=True):
        assert [entry["word"] for entry in mine] == [entry["word"] for entry in theirs]
        assert [entry["score"] for entry in mine] == pytest.approx([entry["score"] for entry in theirs], abs=1e-4)


def test_text_generation_runs_on_the_slots_that_the_pass_made(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny("llama", "text-generation")
    body = '{"inputs": ["Hello", "The end"], "parameters": {"max_new_tokens": 6}}'
    plain = service(folder, "text-generation", []).answer(body)
    made = service(folder, "text-generation", [StaticDecode(slots=2, max_length=64)])
    assert made.metadata()["optimisations"] == {"static_decode": "applied"}
    monkeypatch.setattr(made.loaded.model, "generate", None)
    assert made.answer(body) == plain


def test_a_pass_runs_on_the_inference_thread(bert: Path) -> None:
    seen = []

    class Watching(Scaled):
        def apply(self, model: Any) -> Applied:
            seen.append(threading.current_thread().name)
            return super().apply(model)

    service(bert, "text-classification", [Watching(1.0)])
    assert seen == ["inference"]


def test_start_tells_where_it_decides_otherwise_than_was_planned(caplog: pytest.LogCaptureFixture) -> None:
    planned = [PassDecision("w8a8", True, "planned."), PassDecision("compile", False, "planned.")]
    chosen = [
        (Compile(), Applicability(False, "as planned")),
        (W8A8(FusedEncoder()), Applicability(False, "no such GPU")),
    ]
    with caplog.at_level("INFO"):
        tell_differences(chosen, planned)
    (told,) = caplog.messages
    assert told == "pass w8a8 is not taken here and was planned taken: no such GPU"
