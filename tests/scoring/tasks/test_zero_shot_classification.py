"""zero-shot-classification against the Hugging Face pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import mii_azure
from mii_azure.errors import TaskUnsupported
from scoring.config import Deployment, Limits
from scoring.errors import LoadError
from scoring.model.loader import load
from scoring.schema.registry import task_class
from tests.conftest import Tiny
from tests.scoring.conftest import Serve
from tests.scoring.encoders import LONG, TEXTS, assert_agree, oracle, random_model

TASK = "zero-shot-classification"
LABELS = ["politics", "a very long label about the public health of old cities", "naïve 名前"]


@pytest.mark.parametrize("family", ["bert", "roberta", "deberta-v2"])
@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"multi_label": True},
        {"hypothesis_template": "It is about {{x}} and {}, is it?"},
        {"hypothesis_template": "{0}", "multi_label": True},
    ],
    ids=str,
)
def test_served_equals_pipeline(family: str, parameters: dict[str, Any], tiny: Tiny, serve: Serve) -> None:
    served, pipe = serve(tiny(family, TASK), TASK), oracle(tiny(family, TASK), TASK)
    assert_agree(served.ok(TEXTS, candidate_labels=LABELS, **parameters), pipe(TEXTS, LABELS, **parameters))
    assert_agree(served.ok(TEXTS[1], candidate_labels=LABELS, **parameters), pipe(TEXTS[1], LABELS, **parameters))


def test_one_label_and_labels_in_a_text(tiny: Tiny, serve: Serve) -> None:
    served, pipe = serve(tiny("bert", TASK), TASK), oracle(tiny("bert", TASK), TASK)
    assert_agree(served.ok(TEXTS[1], candidate_labels=["a"]), pipe(TEXTS[1], ["a"]))
    assert_agree(served.ok(TEXTS[1], candidate_labels="a, b ,c"), pipe(TEXTS[1], "a, b ,c"))


def test_only_the_text_is_cut(tiny: Tiny, serve: Serve) -> None:
    served, pipe = serve(tiny("bert", TASK), TASK), oracle(tiny("bert", TASK), TASK)
    assert served.refused(LONG, candidate_labels=LABELS)["code"] == "prompt_too_long"
    assert_agree(served.ok(LONG, candidate_labels=LABELS, truncation=True), pipe(LONG, LABELS))
    template = "word " * 200 + "{}"
    error = served.refused("a text", candidate_labels=["a"], truncation=True, hypothesis_template=template)
    assert (error["code"], error["where"]) == ("prompt_too_long", "parameters.hypothesis_template")


@pytest.mark.parametrize(
    ("ids", "entailed"), [({"ENTAILMENT": 0, "not": 1}, 0), ({"neutral": 0, "entailed": 1, "contradiction": 2}, 1)]
)
def test_the_labels_are_found_as_the_pipeline_finds_them(
    ids: dict[str, int], entailed: int, tiny: Tiny, serve: Serve, tmp_path: Path
) -> None:
    names = {number: label for label, number in ids.items()}
    folder = random_model(tiny("bert", TASK), TASK, tmp_path / "m", id2label=names, label2id=ids)
    served, pipe = serve(folder, TASK), oracle(folder, TASK)
    assert pipe.entailment_id == entailed
    for several in (True, False):
        made = served.ok(TEXTS, candidate_labels=LABELS, multi_label=several)
        assert_agree(made, pipe(TEXTS, LABELS, multi_label=several))


def test_a_model_without_entailment_is_refused_before_and_when_it_is_loaded(tiny: Tiny) -> None:
    folder = tiny("bert", "text-classification")
    with pytest.raises(TaskUnsupported, match="negative, neutral, positive"):
        mii_azure.plan(TASK, str(folder))
    with pytest.raises(LoadError, match="negative, neutral, positive"):
        task_class(TASK)(load(Deployment("tiny", TASK), folder), TASK)


def test_many_labels_pass_a_short_queue(tiny: Tiny, serve: Serve) -> None:
    served = serve(tiny("bert", TASK), TASK, Limits(queue_size=8))
    assert len(served.ok("a", candidate_labels=[str(number) for number in range(40)])["labels"]) == 40


def test_a_text_has_no_more_labels_than_a_list(tiny: Tiny, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    served, tokenised = serve(tiny("bert", TASK), TASK), []
    monkeypatch.setattr(served.service.task, "tokenize", lambda *asked, **_: tokenised.append(asked))
    error = served.refused("a text", candidate_labels="a," * 2**15)
    assert (error["code"], error["where"]) == ("invalid_parameter", "parameters.candidate_labels")
    assert "32,768 labels; at most 4,096" in error["message"]
    assert not tokenised


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"candidate_labels": []},
        {"candidate_labels": " , "},
        {"candidate_labels": [""]},
        {"candidate_labels": ["a"], "hypothesis_template": "none"},
        {"candidate_labels": ["a"], "hypothesis_template": "{} and {}"},
        {"candidate_labels": ["a"], "hypothesis_template": "{0.__class__}"},
        {"candidate_labels": ["a"], "hypothesis_template": "{:>1000000000}"},
        {"candidate_labels": ["a"], "hypothesis_template": "{!r}"},
        {"candidate_labels": ["a"], "hypothesis_template": "{"},
        {"candidate_labels": ["a"], "multi_label": "yes"},
    ],
    ids=str,
)
def test_bad_requests(parameters: dict[str, Any], tiny: Tiny, serve: Serve) -> None:
    error = serve(tiny("bert", TASK), TASK).refused("a text", **parameters)
    assert error["where"] in {"parameters." + name for name in ("multi_label", "hypothesis_template")} or (
        error["where"].startswith("parameters.candidate_labels") and "list[" not in error["where"]
    )
