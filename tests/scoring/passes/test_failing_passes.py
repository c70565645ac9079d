"""Whatever a pass raises, and whenever: the model serves without it, and its record says why."""

import json
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from scoring.errors import PassNotServed
from scoring.passes.base import Applicability, Applied, Facts, Hardware, PassRefused
from scoring.passes.static_decode import StaticDecode
from tests.scoring.passes.scaled import ASK, CPU, Scaled, Tiny, service


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
