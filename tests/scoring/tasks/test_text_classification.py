"""text-classification against the Hugging Face pipeline."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Tiny
from tests.scoring.conftest import Serve
from tests.scoring.encoders import ENCODERS, LONG, TEXTS, assert_agree, oracle, random_model

TASK = "text-classification"
PAIRS = [{"text": text, "text_pair": pair} for text, pair in zip(TEXTS, reversed(TEXTS), strict=True)]


@pytest.mark.parametrize("family", ENCODERS)
def test_served_equals_pipeline(family: str, tiny: Tiny, serve: Serve) -> None:
    served, pipe = serve(tiny(family, TASK), TASK), oracle(tiny(family, TASK), TASK)
    assert_agree(served.ok(TEXTS), pipe(TEXTS))
    assert_agree(served.ok(TEXTS, top_k=None), pipe(TEXTS, top_k=None))
    assert_agree(served.ok(PAIRS), pipe(PAIRS))
    assert_agree(served.ok(LONG, truncation=True), pipe(LONG, truncation=True))
    assert served.refused(LONG)["code"] == "prompt_too_long"


@pytest.mark.parametrize("family", ENCODERS)
def test_batched_equals_single(family: str, tiny: Tiny, serve: Serve) -> None:
    served = serve(tiny(family, TASK), TASK)
    inputs = [*TEXTS, *PAIRS]
    assert_agree(served.ok(inputs, top_k=3), [served.ok(value, top_k=3) for value in inputs])


@pytest.mark.parametrize(
    "parameters",
    [
        {"top_k": 2},
        {"top_k": 1},
        {"function_to_apply": "none"},
        {"function_to_apply": "sigmoid", "top_k": None},
        {"function_to_apply": "softmax"},
    ],
    ids=str,
)
def test_parameters(parameters: dict[str, Any], tiny: Tiny, serve: Serve) -> None:
    served, pipe = serve(tiny("bert", TASK), TASK), oracle(tiny("bert", TASK), TASK)
    assert_agree(served.ok(TEXTS[1], **parameters), pipe(TEXTS[1], **parameters))
    assert_agree(served.ok(TEXTS, **parameters), pipe(TEXTS, **parameters))


@pytest.mark.parametrize(
    "changes",
    [
        {"num_labels": 1},
        {"num_labels": 1, "problem_type": "regression"},
        {"num_labels": 4, "problem_type": "regression"},
        {"num_labels": 4, "problem_type": "multi_label_classification"},
        {"num_labels": 4, "problem_type": "single_label_classification"},
    ],
    ids=str,
)
def test_problem_types(changes: dict[str, Any], tiny: Tiny, serve: Serve, tmp_path: Path) -> None:
    folder = random_model(tiny("bert", TASK), TASK, tmp_path / "model", **changes)
    served, pipe = serve(folder, TASK), oracle(folder, TASK)
    assert_agree(served.ok(TEXTS), pipe(TEXTS))
    assert_agree(served.ok(TEXTS, top_k=None), pipe(TEXTS, top_k=None))


@pytest.mark.parametrize(("family", "source"), [("gpt2", "text-generation"), ("bart", "summarization")])
def test_heads_that_depend_on_the_batch(family: str, source: str, tiny: Tiny, serve: Serve, tmp_path: Path) -> None:
    """GPT-2 has no padding to find a text's end by; BART wants one number of end tokens in a batch."""
    folder = random_model(tiny(family, source), TASK, tmp_path / "model", num_labels=3)
    served, pipe = serve(folder, TASK), oracle(folder, TASK)
    inputs = [TEXTS[1], PAIRS[1], TEXTS[0]]
    assert_agree(served.ok(inputs), pipe(inputs))


def test_a_model_with_one_token_type(tiny: Tiny, serve: Serve, tmp_path: Path) -> None:
    """Its tokenizer marks the second text of a pair with a type that the model has no embedding for."""
    folder = random_model(tiny("electra", TASK), TASK, tmp_path / "model", type_vocab_size=1)
    pipe = oracle(folder, TASK)
    pipe.tokenizer.model_input_names = ["input_ids", "attention_mask"]
    assert_agree(serve(folder, TASK).ok(PAIRS), pipe(PAIRS))


def test_a_list_is_one_forward(tiny: Tiny, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    served = serve(tiny("bert", TASK), TASK)
    task, sizes = served.service.task, []
    forward = task.forward

    def counted(rows: Any, between: Any) -> Any:
        sizes.append(len(rows))
        return forward(rows, between)

    monkeypatch.setattr(task, "forward", counted)
    served.ok(TEXTS)
    assert sizes == [len(TEXTS)]


def test_truncating_and_refusing_at_once(tiny: Tiny, serve: Serve) -> None:
    """The tokenizer keeps the last call's truncation; concurrent requests must not get each other's."""
    served = serve(tiny("bert", TASK), TASK)
    text = LONG * 3
    expected = served.ok(text, truncation=True)

    def ask(truncation: bool) -> None:
        status, answer = served({"inputs": text, "parameters": {"truncation": truncation}})
        assert status == (200 if truncation else 400)
        if truncation:
            assert_agree(answer, expected)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, [True, False] * 60))


def test_azure_forms(tiny: Tiny, serve: Serve) -> None:
    served = serve(tiny("bert", TASK), TASK)
    best = served.ok(TEXTS)
    assert served({"input_data": TEXTS}) == (200, best)
    assert_agree(served({"input_data": TEXTS[0]}), (200, best[:1]))
    labels = [{"0": answer["label"]} for answer in best]
    assert served({"input_data": {"input_string": TEXTS}}) == (200, labels)
    assert served({"input_data": {"columns": ["text"], "data": [[text] for text in TEXTS]}}) == (200, best)
    table = {"columns": ["text", "text_pair"], "data": [list(pair.values()) for pair in PAIRS]}
    assert served({"input_data": table}) == (200, served.ok(PAIRS))


@pytest.mark.parametrize(
    ("inputs", "parameters", "code"),
    [
        ("", {}, "invalid_input"),
        ([], {}, "invalid_input"),
        ([TEXTS[0], 3], {}, "invalid_input"),
        ({"text": "a", "pair": "b"}, {}, "invalid_input"),
        (TEXTS[0], {"top_k": 0}, "invalid_parameter"),
        (TEXTS[0], {"topk": 1}, "invalid_parameter"),
        (TEXTS[0], {"function_to_apply": "relu"}, "invalid_parameter"),
        (TEXTS[0], {"truncation": "yes"}, "invalid_parameter"),
    ],
    ids=str,
)
def test_bad_requests(inputs: Any, parameters: dict[str, Any], code: str, tiny: Tiny, serve: Serve) -> None:
    error = serve(tiny("bert", TASK), TASK).refused(inputs, **parameters)
    assert error["code"] == code
    assert error["where"]


def test_what_truncation_cut_is_told(tiny: Tiny, serve: Serve) -> None:
    served = serve(tiny("bert", TASK), TASK)
    body = {"inputs": ["a fine day", LONG], "parameters": {"truncation": True}, "options": {"usage": True}}
    assert served(body)[1]["usage"]["truncated"] == [1]
    assert served.service.answer(json.dumps(body)).headers == {"X-Truncated-Inputs": "1"}
    assert "truncated" not in served(body | {"inputs": "a fine day"})[1]["usage"]
