"""text-ranking against plain transformers: logits of pairs, alone and in company."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from scoring.config import Deployment, Limits
from scoring.errors import LoadError
from scoring.model.loader import load
from scoring.schema.registry import task_class
from tests.conftest import Tiny
from tests.scoring.conftest import Serve
from tests.scoring.encoders import LONG, TEXTS, assert_agree, random_model
from tests.tiny_models import load_tiny

TASK = "text-ranking"
QUERY = "Where does Anna live?"
BODY = {"query": QUERY, "texts": TEXTS}


def logits(folder: Path, pairs: list[tuple[str, str]]) -> list[float]:
    """What plain transformers gives each pair, alone."""
    model, tokenizer = load_tiny(folder, TASK)
    with torch.inference_mode():
        made = [model(**tokenizer(*pair, truncation=True, return_tensors="pt")).logits[0, 0] for pair in pairs]
    return [float(each) for each in made]


def told(folder: Path, name: str, value: Any) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(value))


@pytest.mark.parametrize("family", ["bert", "xlm-roberta", "deberta-v2"])
def test_a_ranking_equals_plain_transformers(family: str, tiny: Tiny, serve: Serve) -> None:
    served = serve(tiny(family, TASK), TASK)
    expected = torch.tensor(logits(tiny(family, TASK), [(QUERY, text) for text in TEXTS]))
    ranked = served.ok(BODY)
    assert [entry["index"] for entry in ranked] == expected.argsort(descending=True).tolist()
    by_index = [entry["score"] for entry in sorted(ranked, key=lambda entry: entry["index"])]
    assert_agree(by_index, expected.sigmoid().tolist())
    raw = served.ok(BODY, raw_scores=True, top_k=2, return_text=True)
    assert_agree(
        raw[0], {"index": int(expected.argmax()), "score": float(expected.max()), "text": TEXTS[raw[0]["index"]]}
    )
    assert len(raw) == 2


def test_a_decoder_with_one_label(tiny: Tiny, serve: Serve, tmp_path: Path) -> None:
    """Its head reads the last token, which padding must not be."""
    folder = random_model(tiny("qwen2", "text-generation"), TASK, tmp_path / "model", num_labels=1)
    expected = logits(folder, [(QUERY, text) for text in TEXTS])
    ranked = serve(folder, TASK).ok(BODY, raw_scores=True)
    assert_agree([entry["score"] for entry in sorted(ranked, key=lambda entry: entry["index"])], expected)


def test_pairs_are_answered_with_a_number_each(tiny: Tiny, serve: Serve) -> None:
    served = serve(tiny("bert", TASK), TASK)
    expected = torch.tensor(logits(tiny("bert", TASK), [(QUERY, text) for text in TEXTS])).sigmoid().tolist()
    assert_agree(served.ok([[QUERY, text] for text in TEXTS]), expected)
    assert_agree(served.ok([QUERY, TEXTS[0]]), expected[0])
    assert_agree(served.ok({"text": QUERY, "text_pair": TEXTS[1]}), expected[1])
    status, answer = served({"input_data": {"columns": ["text", "text_pair"], "data": [[QUERY, TEXTS[2]]]}})
    assert status == 200
    assert_agree(answer, expected[2:3])


@pytest.mark.parametrize(
    ("file", "value", "activation"),
    [
        ("config.json", {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}, "Identity"),
        ("config.json", {"sbert_ce_default_activation_function": "torch.nn.modules.activation.Tanh"}, "Tanh"),
        ("config_sentence_transformers.json", {"activation_fn": "torch.nn.modules.activation.ReLU"}, "ReLU"),
    ],
)
def test_the_folder_names_the_activation(
    file: str, value: dict[str, Any], activation: str, tiny: Tiny, serve: Serve, tmp_path: Path
) -> None:
    folder = random_model(tiny("bert", TASK), TASK, tmp_path / "model", num_labels=1)
    before = json.loads((folder / file).read_text()) if (folder / file).is_file() else {}
    told(folder, file, before | value)
    expected = getattr(torch.nn, activation)()(torch.tensor(logits(folder, [(QUERY, TEXTS[1])])))
    assert_agree(serve(folder, TASK).ok([QUERY, TEXTS[1]]), float(expected))


def test_a_prompt_goes_before_the_query(tiny: Tiny, serve: Serve, tmp_path: Path) -> None:
    folder = random_model(tiny("bert", TASK), TASK, tmp_path / "model", num_labels=1)
    transformer = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.Transformer"}
    told(folder, "modules.json", [transformer])
    told(folder, "sentence_bert_config.json", {"transformer_task": "sequence-classification", "max_seq_length": 40})
    prompts = {"model_type": "CrossEncoder", "prompts": {"ask": "Find: "}, "default_prompt_name": "ask"}
    told(folder, "config_sentence_transformers.json", prompts)
    expected = torch.tensor(logits(folder, [("Find: a", "b c"), ("a", "b c"), ("So: a", "b c")])).sigmoid()
    served = serve(folder, TASK)
    asked = [served.ok(["a", "b c"], **each) for each in ({}, {"instruction": ""}, {"instruction": "So: "})]
    assert_agree(asked, expected.tolist())
    assert "40" in served.refused(["a", LONG])["message"]


def test_long_texts_are_refused_by_place_or_cut_and_told(tiny: Tiny, serve: Serve) -> None:
    served = serve(tiny("bert", TASK), TASK)
    body = {"query": QUERY, "texts": ["short", LONG]}
    refusal = served.refused(body)
    assert (refusal["code"], refusal["where"]) == ("prompt_too_long", "inputs[0].texts[1]")
    expected = torch.tensor(logits(tiny("bert", TASK), [(QUERY, "short"), (QUERY, LONG)])).sigmoid().tolist()
    cut = sorted(served.ok(body, truncate=True), key=lambda entry: entry["index"])
    assert_agree([entry["score"] for entry in cut], expected)
    assert [entry.get("truncated") for entry in cut] == [None, True]


def test_texts_are_cut_to_so_many_tokens(tiny: Tiny, serve: Serve) -> None:
    served = serve(tiny("bert", TASK), TASK)
    whole = "the river runs through the city"
    (one,) = served.ok({"query": QUERY, "texts": [whole]}, max_tokens_per_doc=2)
    kept = served.service.task.tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
    assert_agree(one["score"], served.ok([QUERY, whole[: kept["offset_mapping"][1][1]]]))
    assert one["truncated"] is True
    assert "truncated" not in served.ok({"query": QUERY, "texts": [whole]}, max_tokens_per_doc=100)[0]


def test_a_thousand_texts_pass_a_short_queue(tiny: Tiny, serve: Serve) -> None:
    served = serve(tiny("bert", TASK), TASK, Limits(queue_size=64))
    assert len(served.ok({"query": "a", "texts": ["b"] * 300})) == 300


@pytest.mark.parametrize(
    ("inputs", "parameters"),
    [
        ("a text", {}),
        (["a"], {}),
        ([["a", "b", "c"]], {}),
        ({"query": "a"}, {}),
        ({"query": "a", "texts": []}, {}),
        ({"query": "", "texts": ["a"]}, {}),
        ({"query": "a", "texts": ["b"], "top_n": 1}, {}),
        ({"query": "a", "texts": ["b"]}, {"top_k": 0}),
        ({"query": "a", "texts": ["b"]}, {"top_n": 1}),
    ],
    ids=str,
)
def test_bad_requests(inputs: Any, parameters: dict[str, Any], tiny: Tiny, serve: Serve) -> None:
    error = serve(tiny("bert", TASK), TASK).refused(inputs, **parameters)
    assert error["where"]
    assert "function-" not in json.dumps(error)


def test_a_model_with_several_labels_is_refused(tiny: Tiny) -> None:
    loaded = load(Deployment("tiny", TASK), tiny("bert", "text-classification"))
    with pytest.raises(LoadError, match="3 labels") as refused:
        task_class(TASK)(loaded, TASK)
    assert "text-classification" in refused.value.hint
