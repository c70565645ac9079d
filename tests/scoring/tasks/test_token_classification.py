"""token-classification against the Hugging Face pipeline, and Azure's tags against plain transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from scoring.errors import LoadError
from tests.conftest import Tiny
from tests.scoring.conftest import Serve
from tests.scoring.encoders import ENCODERS, LONG, TEXTS, assert_agree, oracle
from tests.tiny_models import load_tiny

TASK = "token-classification"
STRATEGIES = ["none", "simple", "first", "average", "max"]

# The pipeline says so of every tokenizer but WordPiece; its result is compared all the same.
pytestmark = pytest.mark.filterwarnings("ignore:Tokenizer does not support real words:UserWarning")


@pytest.mark.parametrize("family", ENCODERS)
def test_served_equals_pipeline(family: str, tiny: Tiny, serve: Serve) -> None:
    served, pipe = serve(tiny(family, TASK), TASK), oracle(tiny(family, TASK), TASK)
    for strategy in STRATEGIES:
        expected = pipe(TEXTS, aggregation_strategy=strategy)
        assert any(expected)
        assert_agree(served.ok(TEXTS, aggregation_strategy=strategy), expected)
    # The pipeline cuts a long text unasked.
    assert_agree(served.ok(LONG, truncation=True), pipe(LONG))
    assert served.refused(LONG)["code"] == "prompt_too_long"


@pytest.mark.parametrize("family", ENCODERS)
@pytest.mark.parametrize("stride", [0, 7])
def test_long_texts_in_windows_equal_the_pipelines(family: str, stride: int, tiny: Tiny, serve: Serve) -> None:
    served, pipe = serve(tiny(family, TASK), TASK), oracle(tiny(family, TASK), TASK)
    for strategy in STRATEGIES[1:]:
        how: Any = {"aggregation_strategy": strategy, "stride": stride}
        assert_agree(served.ok([LONG, TEXTS[0]], **how), [pipe(text, **how) for text in (LONG, TEXTS[0])])
    assert max(each["start"] for each in served.ok(LONG, **how, ignore_labels=[])) > len(LONG) // 2


def test_windows_that_cannot_be(tiny: Tiny, serve: Serve) -> None:
    served = serve(tiny("bert", TASK), TASK)
    assert served.refused(LONG, stride=4)["where"] == "parameters.stride"
    assert served.refused(LONG, stride=1000, aggregation_strategy="simple")["where"] == "parameters.stride"
    room = served.service.task.loaded.context_length - 2
    many = served.refused(LONG * 8, stride=room - 1, aggregation_strategy="simple")
    assert many["where"] == "inputs[0]" and "windows" in many["message"]


@pytest.mark.parametrize("family", ENCODERS)
def test_batched_equals_single(family: str, tiny: Tiny, serve: Serve) -> None:
    served = serve(tiny(family, TASK), TASK)
    for strategy in STRATEGIES:
        single = [served.ok(text, aggregation_strategy=strategy) for text in TEXTS]
        assert_agree(served.ok(TEXTS, aggregation_strategy=strategy), single)


@pytest.mark.parametrize("ignored", [[], ["O"], ["PER", "I-LOC", "O"]], ids=str)
@pytest.mark.parametrize("strategy", ["none", "simple"])
def test_ignored_labels(ignored: list[str], strategy: str, tiny: Tiny, serve: Serve) -> None:
    served, pipe = serve(tiny("roberta", TASK), TASK), oracle(tiny("roberta", TASK), TASK)
    parameters: dict[str, Any] = {"ignore_labels": ignored, "aggregation_strategy": strategy}
    assert_agree(served.ok(TEXTS, **parameters), pipe(TEXTS, **parameters))


@pytest.mark.parametrize("family", ENCODERS)
def test_offsets_point_into_the_text(family: str, tiny: Tiny, serve: Serve) -> None:
    text = TEXTS[1]
    entities = serve(tiny(family, TASK), TASK).ok(text, ignore_labels=[])
    covered = {i for entity in entities for i in range(entity["start"], entity["end"])}
    assert {i for i in covered if text[i] != " "} == {i for i in range(len(text)) if text[i] != " "}


def tags_by_hand(folder: Path, text: str) -> list[str]:
    """The label of the first token of each white-space word, with one plain forward over the text."""
    model, tokenizer = load_tiny(folder, TASK)
    encoded = tokenizer(text, return_tensors="pt", return_offsets_mapping=True)
    offsets = encoded.pop("offset_mapping")[0].tolist()
    with torch.no_grad():
        labels = model(input_ids=encoded["input_ids"]).logits[0].argmax(-1).tolist()
    tags, position = [], 0
    for word in text.split():
        begin = text.index(word, position)
        position = begin + len(word)
        inside = [i for i, (start, end) in enumerate(offsets) if start < end and start < position and end > begin]
        tags.append(model.config.id2label[labels[inside[0]]] if inside else "O")
    return tags


@pytest.mark.parametrize("family", ENCODERS)
def test_azure_tags(family: str, tiny: Tiny, serve: Serve) -> None:
    served = serve(tiny(family, TASK), TASK)
    texts = [TEXTS[1], TEXTS[3], TEXTS[4], "\u200bAnna lives \u200b in Bern."]
    tags = [tags_by_hand(tiny(family, TASK), text) for text in texts]
    assert served({"input_data": texts}) == (200, tags)
    assert served({"input_data": {"input_string": texts}}) == (200, [{"0": str(each)} for each in tags])
    assert served({"inputs": {"input_string": [texts[0]]}}) == (200, [{"0": str(tags[0])}])


def test_azure_tags_of_a_cut_text(tiny: Tiny, serve: Serve) -> None:
    served = serve(tiny("bert", TASK), TASK)
    status, (tags,) = served({"input_data": [LONG], "params": {"truncation": True}})
    assert status == 200
    assert len(tags) == len(LONG.split())
    assert set(tags[-20:]) == {"O"}
    assert set(tags[:10]) != {"O"}


def test_a_tokenizer_without_offsets_is_refused(tiny: Tiny, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.BertTokenizer.is_fast", False)
    with pytest.raises(LoadError, match="no character offsets"):
        serve(tiny("bert", TASK), TASK, unused="so that it is loaded anew")


@pytest.mark.parametrize(
    ("parameters", "where"),
    [
        ({"aggregation_strategy": "last"}, "parameters.aggregation_strategy"),
        ({"ignore_labels": "O"}, "parameters.ignore_labels"),
        ({"stride": 3}, "parameters.stride"),
    ],
    ids=str,
)
def test_bad_parameters(parameters: dict[str, Any], where: str, tiny: Tiny, serve: Serve) -> None:
    error = serve(tiny("bert", TASK), TASK).refused(TEXTS[0], **parameters)
    assert (error["code"], error["where"]) == ("invalid_parameter", where)
