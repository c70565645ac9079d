"""Routes of text-embeddings-inference over real bundles, against what /score answers there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

import mii_azure
from local_runner.process.launch import LOOPBACK, Runner
from tests.local_runner.http.test_openai import Base
from tests.retrieval_folders import splade

TEXTS = ["A man is eating food.", "It rains."]
Post = Callable[..., Any]


@pytest.fixture
def post(base: Base) -> Post:
    def posted(server: str, path: str, body: Any, status: int = 200) -> Any:
        answer = httpx.post(base(server) + path, json=body, trust_env=False, timeout=60)
        assert answer.status_code == status, answer.text
        return answer.json()

    return posted


def test_vectors_have_unit_length_unless_they_must_not(post: Post) -> None:
    plain = post("embed", "/score", {"inputs": TEXTS, "parameters": {"normalize": False}})
    assert np.allclose(post("embed", "/embed", {"inputs": TEXTS, "normalize": False}), plain, atol=1e-5)
    unit = np.array(plain) / np.linalg.norm(plain, axis=1, keepdims=True)
    assert np.allclose(post("embed", "/embed", {"inputs": TEXTS, "truncate": True}), unit, atol=1e-5)
    [one] = post("embed", "/embed", {"inputs": TEXTS[0], "dimensions": 8})
    assert len(one) == 8 and abs(np.linalg.norm(one) - 1) < 1e-5
    ids = post("embed", "/tokenize", {"prompt": TEXTS[0]})["tokens"]
    assert np.allclose(post("embed", "/embed", {"inputs": [ids]}), [unit[0]], atol=1e-5)
    assert post("embed", "/embed", {"inputs": ids}) == post("embed", "/embed", {"inputs": [ids]})


def test_texts_are_ranked(post: Post) -> None:
    body = {"query": "Who eats?", "texts": TEXTS}
    expected = post("rerank", "/score", {"inputs": body, "parameters": {"return_text": True}})
    told = post("rerank", "/rerank", {**body, "return_text": True, "raw_scores": False, "truncate": True})
    assert [(each["index"], each["text"]) for each in told] == [(each["index"], each["text"]) for each in expected]
    assert np.allclose([each["score"] for each in told], [each["score"] for each in expected], atol=1e-5)
    cohere = post("rerank", "/rerank", {"query": "Who eats?", "documents": TEXTS, "top_n": 1})
    assert [each["index"] for each in cohere["results"]] == [expected[0]["index"]]


def test_texts_are_labelled(post: Post) -> None:
    every = {"parameters": {"top_k": None}}
    pair = {"text": TEXTS[0], "text_pair": TEXTS[1]}
    assert post("classes", "/predict", {"inputs": TEXTS[0]}) == post("classes", "/score", {"inputs": TEXTS[0], **every})
    assert post("classes", "/predict", {"inputs": TEXTS}) == post("classes", "/score", {"inputs": pair, **every})
    both = post("classes", "/predict", {"inputs": [[TEXTS[0]], TEXTS], "truncate": True})
    assert [each[0]["label"] for each in both] == [
        post("classes", "/score", {"inputs": each, **every})[0]["label"] for each in (TEXTS[0], pair)
    ]
    [first, *_] = post("classes", "/predict", {"inputs": TEXTS[0], "raw_scores": True})
    raw = {"top_k": None, "function_to_apply": "none"}
    assert first == post("classes", "/score", {"inputs": TEXTS[0], "parameters": raw})[0]


def test_sentences_are_compared(post: Post) -> None:
    body = {"inputs": {"source_sentence": TEXTS[0], "sentences": TEXTS}}
    assert np.allclose(post("alike", "/similarity", body), post("alike", "/score", body), atol=1e-5)


@pytest.mark.parametrize(
    ("server", "path", "body", "told"),
    [
        ("embed", "/embed", {"inputs": []}, "The inputs must be"),
        ("embed", "/embed", {"inputs": [1, "a"]}, "The inputs must be"),
        ("embed", "/embed", {"inputs": "a", "colour": 1}, "Unknown parameter 'colour'"),
        ("embed", "/embed", {"inputs": "a " * 500}, "The text has"),
        ("classes", "/predict", {"inputs": [["a", "b", "c"]]}, "An input is a text"),
        ("classes", "/predict", {"inputs": "a", "raw_scores": 1}, '"raw_scores" must be'),
        ("embed", "/rerank", {"query": "a", "texts": ["b"]}, "This deployment serves sentence-embeddings."),
        ("rerank", "/rerank", {"query": "a", "texts": []}, "The texts are missing."),
        ("rerank", "/rerank", {"query": 5, "texts": ["b"]}, "Input should be"),
        ("rerank", "/predict", {"inputs": "a"}, "This deployment serves text-ranking."),
    ],
)
def test_what_cannot_be_answered_is_refused_in_its_shape(
    server: str, path: str, body: Any, told: str, post: Post
) -> None:
    refused = post(server, path, body, 400)
    assert refused["error"].startswith(told)
    assert refused["error_type"] == "validation"


def test_remedies_are_in_the_words_of_the_route(post: Post) -> None:
    refused = post("embed", "/embed", {"inputs": "a " * 5000}, 400)
    assert refused["hint"] == 'Shorten it, or set "truncation": true.'
    assert len(post("embed", "/embed", {"inputs": "a " * 5000, "truncation": True})) == 1
    nested = post("alike", "/similarity", {"inputs": {"source_sentence": "a " * 5000, "sentences": ["a"]}}, 400)
    assert '"parameters": {"truncation": true}' in nested["hint"]


def test_clients_may_send_the_usual_side_of_truncation(post: Post) -> None:
    bodies: dict[str, dict[str, Any]] = {"rerank": {"query": "a", "texts": TEXTS}, "classes": {"inputs": "a"}}
    for (server, body), path in zip(bodies.items(), ("/rerank", "/predict"), strict=True):
        usual = {"truncate": False, "truncation_direction": "Right"}
        assert post(server, path, body | usual) == post(server, path, body)
        assert post(server, path, body | {"truncation_direction": "Left"}, 400)["where"] == "truncation_direction"


def test_sparse_vectors_are_told_by_index(post: Post, tiny: Callable[[str, str], Path], tmp_path: Path) -> None:
    folder = splade(tiny("bert", "fill-mask"), tmp_path / "model")
    bundle = mii_azure.generate(
        "sentence-embeddings", str(folder), "splade", output=tmp_path / "b", passes_off=("cpu",)
    )
    with Runner(bundle) as runner:
        url = f"http://{LOOPBACK}:{runner.http_port}"
        told, own, one, dense = (
            httpx.post(url + path, json=body, trust_env=False, timeout=60)
            for path, body in (
                ("/embed_sparse", {"inputs": TEXTS, "truncate": True}),
                ("/score", {"inputs": TEXTS}),
                ("/embed_sparse", {"inputs": TEXTS[0], "max_active_dims": 3}),
                ("/embed", {"inputs": TEXTS}),
            )
        )
    for vector, weights in zip(told.json(), own.json(), strict=True):
        assert [each["index"] for each in vector] == sorted(map(int, weights))
        assert {str(each["index"]): each["value"] for each in vector} == pytest.approx(weights, abs=1e-5)
    assert len(one.json()[0]) == 3
    assert (dense.status_code, "/embed_sparse" in dense.json()["error"]) == (400, True)
    assert post("embed", "/embed_sparse", {"inputs": "a"}, 400)["error"].startswith("This model's vectors are not")
