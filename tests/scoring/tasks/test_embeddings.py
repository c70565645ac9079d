"""feature-extraction and sentence-embeddings against AutoModel and the Hugging Face pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import Packaged, Tiny
from tests.scoring.conftest import Serve
from tests.scoring.encoders import ENCODERS, LONG, TEXTS, assert_agree, oracle
from tests.tiny_models import load_tiny

FEATURES, SENTENCES = "feature-extraction", "sentence-embeddings"
POOLINGS = ["none", "mean", "cls", "max"]


def by_hand(folder: Path, text: str, pooling: str, normalize: bool) -> Any:
    """One text through AutoModel, pooled by plain loops over its tokens."""
    model, tokenizer = load_tiny(folder, FEATURES)
    encoded = tokenizer(text, return_tensors="pt", truncation=True, max_length=128)
    with torch.no_grad():
        states = model(input_ids=encoded["input_ids"]).last_hidden_state[0].tolist()
    columns = list(zip(*states, strict=True))
    pooled = {
        "none": states,
        "mean": [[sum(column) / len(column) for column in columns]],
        "max": [[max(column) for column in columns]],
        "cls": states[:1],
    }[pooling]
    if normalize:
        pooled = [[x / sum(y * y for y in vector) ** 0.5 for x in vector] for vector in pooled]
    return [pooled] if pooling == "none" else pooled[0]


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("family", ENCODERS)
def test_served_equals_plain_transformers(family: str, pooling: str, tiny: Tiny, serve: Serve) -> None:
    folder = tiny(family, FEATURES)
    features, sentences = serve(folder, FEATURES), serve(tiny(family, SENTENCES), SENTENCES)
    for normalize in (False, True):
        expected = [by_hand(folder, text, pooling, normalize) for text in TEXTS]
        assert_agree(features.ok(TEXTS, pooling=pooling, normalize=normalize), expected)
        assert_agree(sentences.ok(TEXTS, pooling=pooling, normalize=normalize), expected)


@pytest.mark.parametrize("family", ENCODERS)
def test_features_have_the_pipelines_shape(family: str, tiny: Tiny, serve: Serve) -> None:
    served, pipe = serve(tiny(family, FEATURES), FEATURES), oracle(tiny(family, FEATURES), FEATURES)
    assert_agree(served.ok(TEXTS[1]), pipe(TEXTS[1]))
    assert_agree(served.ok(TEXTS), pipe(TEXTS))
    assert_agree(served.ok(LONG, truncation=True), pipe(LONG, truncation=True))


@pytest.mark.parametrize("task", [FEATURES, SENTENCES])
@pytest.mark.parametrize("family", ENCODERS)
def test_batched_equals_single(family: str, task: str, tiny: Tiny, serve: Serve) -> None:
    served = serve(tiny(family, task), task)
    assert_agree(served.ok(TEXTS), [served.ok(text) for text in TEXTS])
    assert served.refused(LONG)["code"] == "prompt_too_long"


def test_defaults_and_options(tiny: Tiny, serve: Serve) -> None:
    """Parameters go before the deployment's options, and those before the task's own defaults."""
    folder = tiny("bert", SENTENCES)
    assert_agree(serve(folder, SENTENCES).ok(TEXTS[1]), by_hand(folder, TEXTS[1], "mean", True))
    served = serve(folder, SENTENCES, pooling="cls", normalize=False)
    assert_agree(served.ok(TEXTS[1]), by_hand(folder, TEXTS[1], "cls", False))
    assert_agree(served.ok(TEXTS[1], pooling="max", normalize=True), by_hand(folder, TEXTS[1], "max", True))


def test_azure_forms(tiny: Tiny, serve: Serve) -> None:
    served = serve(tiny("bert", SENTENCES), SENTENCES)
    vectors = served.ok(TEXTS)
    assert served({"input_data": TEXTS}) == (200, vectors)
    assert served({"input_data": {"input_string": TEXTS}}) == (200, [{"0": vector} for vector in vectors])


@pytest.mark.parametrize("parameters", [{"pooling": "last"}, {"normalize": 1}, {"pool": "mean"}], ids=str)
def test_bad_parameters(parameters: dict[str, Any], tiny: Tiny, serve: Serve) -> None:
    assert serve(tiny("bert", SENTENCES), SENTENCES).refused("a", **parameters)["code"] == "invalid_parameter"


@pytest.mark.real
def test_minilm_knows_what_is_alike(packaged: Packaged, serve: Serve) -> None:
    served = serve(packaged("minilm"), SENTENCES)
    eats, bread, carries = served.ok(
        ["A man is eating food.", "A man is eating a piece of bread.", "The girl is carrying a baby."]
    )

    def cosine(one: list[float], other: list[float]) -> float:
        return sum(x * y for x, y in zip(one, other, strict=True))

    assert cosine(eats, eats) == pytest.approx(1, abs=1e-5)
    assert cosine(eats, bread) == pytest.approx(0.7553, abs=1e-3)
    assert cosine(eats, carries) == pytest.approx(-0.105, abs=1e-3)
