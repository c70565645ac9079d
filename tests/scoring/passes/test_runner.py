"""Passes are chosen, verified and recorded; what fails is undone, named, and not served."""

import json
import threading
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from scoring.api.service import Service
from scoring.config import Deployment, Limits, Optimisation, PassDecision
from scoring.encoder.ops import TorchOps
from scoring.encoder.verify import verify_encoder
from scoring.errors import LoadError, PassNotServed
from scoring.model.info import facts_of
from scoring.model.loader import load
from scoring.passes.base import Applicability, Applied, Facts, Hardware, Pass, PassRefused
from scoring.passes.compile import Compile
from scoring.passes.fused_encoder import FusedEncoder
from scoring.passes.registry import encoder_passes
from scoring.passes.runner import BRIEF, choose, tell_differences
from scoring.passes.static_decode import StaticDecode
from scoring.passes.w8a8 import W8A8
from scoring.schema.registry import task_class, task_schema

Tiny = Callable[[str, str], Path]
H100 = Hardware("cuda", "NVIDIA H100", (9, 0), 80 << 30, 1, nvcc=True)
T4 = Hardware("cuda", "NVIDIA T4", (7, 5), 16 << 30, 1, nvcc=True)
CPU = Hardware("cpu", "cpu", (0, 0), 0, 0, nvcc=False)
BERT = Facts("bert", "BertForMaskedLM", "encoder", 110_000_000, 220_000_000, 12, 12, 12, 768)


class Scaled(Pass):
    """Multiplies the logits: by 1 it is right, by anything else wrong."""

    name = "scaled"

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def applies(self, facts: Facts, hardware: Hardware, objective: str) -> Applicability:
        return Applicability(True, "always")

    def apply(self, model: Any) -> Applied:
        plain = model.forward

        def forward(**batch: Any) -> Any:
            output = plain(**batch)
            output.logits = output.logits * self.factor
            return output

        model.forward = forward
        return Applied(1, f"times {self.factor}", lambda: delattr(model, "forward"))

    def verify(self, model: Any, reference: Callable[..., Any]) -> float:
        return verify_encoder(model, reference)


class Refusing(Scaled):
    name = "refusing"

    def apply(self, model: Any) -> Applied:
        raise PassRefused("not this model")


class Crashing(Scaled):
    """Fails in apply, with the model changed by `factor`."""

    name = "crashing"

    def apply(self, model: Any) -> Applied:
        super().apply(model)
        raise RuntimeError("a defect")


class Breaking(Scaled):
    name = "breaking"

    def verify(self, model: Any, reference: Callable[..., Any]) -> float:
        raise ZeroDivisionError


def service(folder: Path, task: str, passes: list[Pass], hardware: Hardware = H100, **settings: Any) -> Service:
    deployment = Deployment("x", task, limits=Limits(), optimisation=Optimisation(**settings))
    loaded = load(deployment, folder)
    made = Service(deployment, loaded, task_class(task)(loaded, task), {})
    made.start(choose(passes, facts_of(loaded.model, task_schema(task).generative), hardware, deployment.optimisation))
    return made


@pytest.fixture
def bert(tiny: Tiny) -> Path:
    return tiny("bert", "text-classification")


ASK = '{"inputs": ["a fine day", "bad"], "parameters": {"top_k": null}}'


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


class Raising(Scaled):
    """Changes forward and weights, and raises at one stage."""

    name = "raising"

    def __init__(self, stage: str) -> None:
        super().__init__(1.0)
        self.stage = stage
        self.calls = 0

    def _at(self, stage: str) -> None:
        if self.stage == stage:
            raise AttributeError(f"no such thing as {stage}")

    def applies(self, facts: Facts, hardware: Hardware, objective: str) -> Applicability:
        self._at("applies")
        return super().applies(facts, hardware, objective)

    def apply(self, model: Any) -> Applied:
        applied = super().apply(model)
        scaled = model.forward
        kept = model.classifier.weight.detach().clone()
        if self.stage in ("apply, weights changed", "undo, weights changed"):
            model.classifier.weight.data.mul_(3.0)
        if self.stage == "apply, modules changed":
            model.classifier = torch.nn.Identity()
        if self.stage.startswith("apply"):
            raise AttributeError("'NoneType' object has no attribute 'data'")
        if self.stage == "refused, half done":
            raise PassRefused("not this model")

        def forward(**batch: Any) -> Any:
            self.calls += 1
            if self.stage == "first use" and self.calls > self.verified:
                raise RuntimeError("the graph cannot be captured")
            return scaled(**batch)

        def undo() -> None:
            if self.stage.startswith("undo"):
                raise RuntimeError("nothing to undo")
            model.classifier.weight.data.copy_(kept)
            applied.undo()

        self.verified = 1 << 30
        model.forward = forward
        return Applied(1, "raising", undo)

    def verify(self, model: Any, reference: Callable[..., Any]) -> float:
        self._at("verify")
        if self.stage.startswith("undo"):
            raise ValueError
        error = super().verify(model, reference)
        self.verified = self.calls
        return error

    def bound(self, reference: Callable[..., Any]) -> float:
        self._at("bound")
        return super().bound(reference)

    def warm(self, model: Any) -> None:
        self._at("warm")


STAGES = (
    "applies",
    "apply",
    "apply, modules changed",
    "apply, weights changed",
    "refused, half done",
    "verify",
    "bound",
    "undo",
    "undo, weights changed",
    "warm",
    "first use",
)


@pytest.mark.parametrize("stage", STAGES)
def test_whatever_a_pass_raises_the_model_serves_without_it(bert: Path, stage: str) -> None:
    plain = service(bert, "text-classification", []).answer(ASK)
    made = service(bert, "text-classification", [Raising(stage)])
    assert made.answer(ASK) == plain
    (record,) = made.metadata()["passes"]
    wanted = {"applies": "not taken", "refused, half done": "refused"}.get(stage, "dropped")
    assert record["state"] == wanted
    assert wanted == "refused" or "failed" in record["reason"]
    assert "forward" not in vars(made.loaded.model)


@pytest.mark.parametrize("stage", STAGES)
def test_whatever_a_forced_pass_raises_is_an_error_of_the_start(bert: Path, stage: str) -> None:
    with pytest.raises(PassNotServed, match="The pass raising was forced on and cannot be served"):
        service(bert, "text-classification", [Raising(stage)], on=("raising",))


def test_what_was_applied_before_stays_unless_the_model_is_loaded_again(bert: Path) -> None:
    made = service(bert, "text-classification", [Scaled(1.0), Raising("apply, modules changed")])
    assert made.metadata()["optimisations"] == {"scaled": "applied", "raising": "dropped"}
    made = service(bert, "text-classification", [Scaled(1.0), Raising("apply, weights changed")])
    assert made.metadata()["optimisations"] == {"scaled": "dropped", "raising": "dropped"}
    assert made.records[0].reason == "the model was loaded again after raising"
    assert made.answer(ASK).status == 200


def test_a_reference_that_cannot_be_had_leaves_the_model_plain(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(model: Any) -> Any:
        raise ValueError("Cannot handle batch sizes > 1")

    monkeypatch.setattr("scoring.api.service.reference_of", lambda task: failing)
    made = service(bert, "text-classification", [Scaled(1.0)])
    assert made.records[0].state == "dropped"
    assert "Cannot handle batch sizes" in made.records[0].reason
    assert made.answer(ASK).status == 200


class Late(Raising):
    """Fails on texts of one length only, so that neither verification nor the sample meets it."""

    def __init__(self, length: int) -> None:
        super().__init__("")
        self.length = length

    def apply(self, model: Any) -> Applied:
        applied = super().apply(model)
        inner = model.forward

        def forward(**batch: Any) -> Any:
            if batch["input_ids"].shape[1] == self.length:
                raise RuntimeError("an illegal shape")
            return inner(**batch)

        model.forward = forward
        return applied


def test_a_pass_that_fails_on_a_request_is_withdrawn_and_the_request_answered(bert: Path) -> None:
    ask = '{"inputs": "a b c d e f g h i j k l m n o p"}'
    plain = service(bert, "text-classification", [])
    length = plain.task.encode("a b c d e f g h i j k l m n o p", plain.task.schema.parse_parameters({}), 0)[0].tokens
    made = service(bert, "text-classification", [Scaled(1.0), Late(length)])
    assert made.metadata()["optimisations"] == {"scaled": "applied", "raising": "applied"}
    assert made.answer(ask) == plain.answer(ask)
    assert made.metadata()["optimisations"] == {"scaled": "applied", "raising": "dropped"}


def test_a_request_that_fails_by_itself_costs_no_pass(bert: Path) -> None:
    made = service(bert, "text-classification", [Scaled(1.0)])
    split = made.task.split
    failing = {"now": True}

    def poisoned(output: Any, rows: Any) -> Any:
        if failing["now"]:
            raise RuntimeError("poison")
        return split(output, rows)

    made.task.split = poisoned  # type: ignore[method-assign]
    assert made.answer(ASK).status == 500
    assert made.metadata()["optimisations"] == {"scaled": "applied"}
    assert "forward" in vars(made.loaded.model)
    failing["now"] = False
    assert made.answer(ASK).status == 200


def decoding(folder: Path) -> Any:
    made = service(folder, "text-generation", [StaticDecode(slots=2, max_length=64)], hardware=CPU)
    assert made.metadata()["optimisations"] == {"static_decode": "applied"}
    return made


def test_slots_that_fail_first_on_a_request_are_withdrawn_and_all_rows_answered(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["Hello", "The end", "Once upon a time", "A king", "Stars"]
    body = json.dumps({"inputs": texts, "parameters": {"max_new_tokens": 9}})
    stream = json.dumps({"inputs": texts[0], "parameters": {"max_new_tokens": 9}, "stream": True})
    folder = tiny("gpt2", "text-generation")
    plain = service(folder, "text-generation", [])
    for asked in (body, stream):
        made = decoding(folder)
        decoder, calls = made.loaded.runtime.decoder, count()
        step = decoder.step

        def failing(slots: Any, step: Any = step, calls: Any = calls) -> Any:
            if next(calls) > 2:
                raise RuntimeError("an illegal address")
            return step(slots)

        monkeypatch.setattr(decoder, "step", failing)
        [answer, wanted] = [made.answer(asked), plain.answer(asked)]
        if asked == stream:
            told, wanted_events = (b"".join(each.body).decode().split("\n\n") for each in (answer, wanted))
            assert told[-3] == wanted_events[-3]  # the whole answer
            assert said(told) == said(wanted_events)
        else:
            assert (answer.status, answer.body) == (200, wanted.body)
        [record] = made.records
        assert (record.state, "an illegal address" in record.reason) == ("dropped", True)
        assert made.answer(body).body == plain.answer(body).body
        made.drain(5)


def said(events: list[str]) -> str:
    """The text of a stream's tokens, however it came in pieces."""
    found = [json.loads(event.removeprefix("data: ")) for event in events if event.startswith("data: {")]
    return "".join(event["token"]["text"] for event in found if "token" in event)


def test_a_row_that_fails_without_slots_too_costs_no_pass(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    def poisoned(*_: Any, **__: Any) -> Any:
        raise RuntimeError("poison")

    made = decoding(tiny("gpt2", "text-generation"))
    with monkeypatch.context() as failing:
        failing.setattr(made.loaded.runtime.decoder, "step", poisoned)
        failing.setattr(made.loaded.model, "generate", poisoned)
        assert made.answer(ASK).status == 500
    assert made.metadata()["optimisations"] == {"static_decode": "applied"}
    assert made.answer(ASK).status == 200
    made.drain(5)


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
