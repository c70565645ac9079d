"""Sparse vectors and vectors of each token: as plain transformers computes them, and as sentence-transformers does."""

from __future__ import annotations

import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

from scoring.config import Limits
from scoring.errors import LoadError
from scoring.passes.fused_encoder import FusedEncoder
from tests.conftest import Tiny
from tests.retrieval_folders import (
    MARKERS,
    PUNCTUATION,
    WIDTH,
    colbert,
    multi_vector,
    projection,
    pylate,
    splade,
    write,
)
from tests.scoring.conftest import Serve
from tests.scoring.encoders import LONG, TEXTS, assert_agree

EMBED, ALIKE = "sentence-embeddings", "sentence-similarity"
QUERY = "Where does Anna live, in Zürich?"
BODY = {"source_sentence": QUERY, "sentences": TEXTS}
SPARSE, MULTI = {"form": "sparse"}, {"form": "multi_vector"}


def weights(folder: Path, text: str) -> torch.Tensor:
    """log(1 + relu) of the logits, the largest over a text's tokens, [V]."""
    model, tokenizer = AutoModelForMaskedLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        logits = model(**tokenizer(text, return_tensors="pt")).logits[0]
    return torch.log1p(torch.relu(logits)).amax(0)


def as_tensor(sparse: dict[str, float], size: int) -> torch.Tensor:
    dense = torch.zeros(size)
    for index, weight in sparse.items():
        dense[int(index)] = weight
    return dense


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("family", ["bert", "distilbert", "xlm-roberta"])
def test_sparse_vectors(family: str, old: bool, tiny: Tiny, serve: Serve, tmp_path: Path) -> None:
    folder = splade(tiny(family, "fill-mask"), tmp_path / "m", old)
    found = serve(folder, EMBED, **SPARSE).ok(TEXTS)
    for text, sparse in zip(TEXTS, found, strict=True):
        expected = weights(folder, text)
        assert list(sparse.values()) == sorted(sparse.values(), reverse=True)
        assert all(weight > 0 for weight in sparse.values())
        torch.testing.assert_close(as_tensor(sparse, len(expected)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "made"),
    [
        ({"pooling_strategy": "sum"}, lambda logits: torch.log1p(logits.relu()).sum(0)),
        ({"activation_function": "log1p_relu"}, lambda logits: torch.log1p(torch.log1p(logits.relu())).amax(0)),
    ],
    ids=["sum", "log1p_relu"],
)
def test_other_weighings(
    config: dict[str, str], made: Callable[..., Any], tiny: Tiny, serve: Serve, tmp_path: Path
) -> None:
    folder = splade(tiny("bert", "fill-mask"), tmp_path / "m", config=config)
    model, tokenizer = AutoModelForMaskedLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        expected = made(model(**tokenizer(QUERY, return_tensors="pt")).logits[0])
    found = serve(folder, EMBED, **SPARSE).ok(QUERY)
    torch.testing.assert_close(as_tensor(found, len(expected)), expected, rtol=1e-4, atol=1e-5)


def test_sparse_answers_may_name_tokens_and_keep_the_largest(tiny: Tiny, serve: Serve, tmp_path: Path) -> None:
    folder = splade(tiny("bert", "fill-mask"), tmp_path / "m")
    served, tokenizer = serve(folder, EMBED, **SPARSE), AutoTokenizer.from_pretrained(folder)
    whole = served.ok(QUERY)
    assert served.ok(QUERY, max_active_dims=3) == dict(list(whole.items())[:3])
    named = served.ok(QUERY, sparse_keys="token", max_active_dims=3)
    assert [str(tokenizer.convert_tokens_to_ids(token)) for token in named] == list(whole)[:3]


def test_sparse_vectors_are_compared_by_their_product_or_cosine(tiny: Tiny, serve: Serve, tmp_path: Path) -> None:
    """Each side with its own prompt."""
    prompts = {"query": "ask: ", "document": "tell: "}
    for name, unit in (("dot", False), ("cosine", True)):
        told = {"prompts": prompts, "similarity_fn_name": name}
        folder = splade(tiny("bert", "fill-mask"), tmp_path / name, **told)
        made = [weights(folder, "ask: " + QUERY), *(weights(folder, "tell: " + text) for text in TEXTS)]
        first, *others = [torch.nn.functional.normalize(each, dim=0) if unit else each for each in made]
        found = torch.tensor(serve(folder, ALIKE, **SPARSE).ok(BODY))
        torch.testing.assert_close(found, torch.stack(others) @ first, rtol=1e-4, atol=1e-4)


def test_an_answer_is_counted_by_the_weights_that_it_has(tiny: Tiny, serve: Serve, tmp_path: Path) -> None:
    """Not by the vocabulary, of which a text has a small part."""
    folder = splade(tiny("bert", "fill-mask"), tmp_path / "m")
    size = len(AutoTokenizer.from_pretrained(folder))
    counted = 41 * sum(map(len, serve(folder, EMBED, **SPARSE).ok(TEXTS)))  # a number and its key
    assert counted < 41 * size * len(TEXTS)
    some = serve(folder, EMBED, Limits(max_answer_bytes=counted), **SPARSE)
    assert len(some.ok(TEXTS)) == len(TEXTS)
    status, told = some({"inputs": TEXTS * 2})
    assert (status, told["error"]["code"]) == (413, "payload_too_large")
    assert "max_active_dims" in told["error"]["hint"]
    assert len(some.ok(TEXTS * 2, max_active_dims=3, sparse_keys="token")) == 2 * len(TEXTS)
    alike = serve(folder, ALIKE, Limits(max_answer_bytes=counted), **SPARSE)
    assert len(alike.ok({**BODY, "sentences": TEXTS * 2})) == 2 * len(TEXTS)  # vectors are no part of an answer


@pytest.mark.parametrize(
    "parameters",
    [{"pooling": "mean"}, {"normalize": True}, {"dimensions": 4}, {"encoding_format": "base64"}],
    ids=str,
)
def test_sparse_vectors_refuse_what_they_cannot_honour(
    parameters: dict[str, Any], tiny: Tiny, serve: Serve, tmp_path: Path
) -> None:
    error = serve(splade(tiny("bert", "fill-mask"), tmp_path / "m"), EMBED, **SPARSE).refused(QUERY, **parameters)
    assert error["where"] == f"parameters.{next(iter(parameters))}"
    assert "sparse vectors" in error["message"]


def test_dense_vectors_refuse_what_is_for_sparse_ones(tiny: Tiny, serve: Serve) -> None:
    served = serve(tiny("bert", EMBED), EMBED)
    assert served.refused(QUERY, max_active_dims=3)["where"] == "parameters.max_active_dims"
    assert served.refused(QUERY, sparse_keys="token")["where"] == "parameters.sparse_keys"


def token_vectors(folder: Path, text: str, skipped: str, length: int = 0, attended: bool = False) -> torch.Tensor:
    """Projected unit vectors of a text's tokens but the skipped ones, masks after it up to a length, [n, D]."""
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    ids = text if isinstance(text, list) else tokenizer(text)["input_ids"]
    more = max(0, length - len(ids))
    mask = [1] * len(ids) + [int(attended)] * more
    ids = [*ids, *[tokenizer.mask_token_id] * more]
    with torch.no_grad():
        states = model(input_ids=torch.tensor([ids]), attention_mask=torch.tensor([mask]))[0][0]
        found = torch.nn.functional.normalize(states @ projection().T, dim=-1)
    left_out = {tokenizer.convert_tokens_to_ids(word) for word in skipped}
    return found[[at for at, each in enumerate(ids) if each not in left_out]]


def best(query: torch.Tensor, document: torch.Tensor) -> float:
    """Sum over the query's tokens of the best product with a token of the document."""
    return float((query @ document.T).amax(1).sum())


@pytest.mark.parametrize("attended", [True, False])
@pytest.mark.parametrize("family", ["bert", "xlm-roberta"])
def test_vectors_of_each_token(family: str, attended: bool, tiny: Tiny, serve: Serve, tmp_path: Path) -> None:
    expansion = {"strategy": "fixed", "attend": attended, "length": 24}
    folder = multi_vector(tiny(family, "feature-extraction"), tmp_path / "m", expansion)
    served = serve(folder, EMBED, **MULTI)
    for text, found in zip(TEXTS, served.ok(TEXTS), strict=True):
        torch.testing.assert_close(torch.tensor(found), token_vectors(folder, text, PUNCTUATION), rtol=1e-3, atol=1e-4)
    query = token_vectors(folder, QUERY, "", 24, attended)
    assert len(query) == 24
    torch.testing.assert_close(torch.tensor(served.ok(QUERY, input_type="query")), query, rtol=1e-3, atol=1e-4)
    expected = [best(query, token_vectors(folder, text, PUNCTUATION)) for text in TEXTS]
    assert_agree(serve(folder, ALIKE, **MULTI).ok(BODY), expected)


@pytest.mark.parametrize("attended", [True, False])
def test_no_pass_leaves_out_what_fills_queries(attended: bool, tiny: Tiny, serve: Serve, tmp_path: Path) -> None:
    """Tokens that nothing attends to are padding to the fused encoder, which computes none."""
    expansion = {"strategy": "min", "attend": attended, "length": 24}
    folder = multi_vector(tiny("bert", "feature-extraction"), tmp_path / "m", expansion)
    served = serve(folder, EMBED, **MULTI)
    before = served.ok(QUERY, input_type="query")
    FusedEncoder().apply(served.service.task.model)
    found = served.ok([QUERY, QUERY], input_type="query")
    torch.testing.assert_close(torch.tensor(found), torch.tensor([before, before]), rtol=1e-3, atol=1e-4)
    assert len(served.ok(TEXTS)) == len(TEXTS)


def test_a_folder_of_pylate(tiny: Tiny, serve: Serve, tmp_path: Path) -> None:
    """Markers are text where the vocabulary has none; punctuation is left out of documents."""
    folder = pylate(tiny("bert", "feature-extraction"), tmp_path / "m")
    query = token_vectors(folder, "[Q] Where is Anna?", "", 12)
    documents = [token_vectors(folder, f"[D] {text}", string.punctuation) for text in TEXTS]
    body = {**BODY, "source_sentence": "Where is Anna?"}
    assert_agree(serve(folder, ALIKE, **MULTI).ok(body), [best(query, each) for each in documents])


def test_a_folder_of_colbert(tiny: Tiny, serve: Serve, tmp_path: Path) -> None:
    """Markers are tokens before the text, and the projection lies among the encoder's weights."""
    folder = colbert(tiny("bert", "feature-extraction"), tmp_path / "m")
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def ids(text: str, marker: str) -> Any:
        first, *rest = tokenizer(text)["input_ids"]
        return [first, tokenizer.convert_tokens_to_ids(marker), *rest]

    query = token_vectors(folder, ids("Where is Anna?", MARKERS[0]), "", 12)
    documents = [token_vectors(folder, ids(text, MARKERS[1]), string.punctuation) for text in TEXTS]
    body = {**BODY, "source_sentence": "Where is Anna?"}
    assert_agree(serve(folder, ALIKE, **MULTI).ok(body), [best(query, each) for each in documents])
    found = serve(folder, EMBED, **MULTI).ok(TEXTS[0])
    torch.testing.assert_close(torch.tensor(found), documents[0], rtol=1e-3, atol=1e-4)


def test_each_side_has_its_length(tiny: Tiny, serve: Serve, tmp_path: Path) -> None:
    expansion = {"strategy": "fixed", "length": 8}
    folder = multi_vector(tiny("bert", "feature-extraction"), tmp_path / "m", expansion)
    served = serve(folder, EMBED, **MULTI)
    assert "the model takes 60 of a document" in served.refused(LONG)["message"]
    assert "the model takes 8 of a query" in served.refused(QUERY, input_type="query")["message"]
    assert len(served.ok(LONG, truncation=True)) <= 60
    assert len(served.ok(QUERY, input_type="query", truncation=True)) == 8
    ids = [[9] * 62]  # fewer than the context's, as token ids
    assert "the model takes 60 of a document" in served.refused(ids)["message"]
    assert "the model takes 8 of a query" in served.refused(ids, input_type="query")["message"]
    assert [len(served.ok(ids, input_type=side, truncation=True)[0]) for side in ("document", "query")] == [60, 8]


@pytest.mark.parametrize(
    "parameters",
    [
        *({"pooling": "mean"}, {"encoding_format": "base64"}, {"max_active_dims": 4}, {"sparse_keys": "token"}),
        {"dimensions": WIDTH + 1},
    ],
    ids=str,
)
def test_vectors_of_each_token_refuse_what_they_cannot_honour(
    parameters: dict[str, Any], tiny: Tiny, serve: Serve, tmp_path: Path
) -> None:
    folder = multi_vector(tiny("bert", "feature-extraction"), tmp_path / "m")
    served = serve(folder, EMBED, **MULTI)
    assert served.refused(QUERY, **parameters)["where"] == f"parameters.{next(iter(parameters))}"


def test_a_text_of_skipped_tokens_alone_is_refused(tiny: Tiny, serve: Serve, tmp_path: Path) -> None:
    folder = multi_vector(tiny("bert", "feature-extraction"), tmp_path / "m")
    stop = AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids(".")
    assert "No token of the text is compared" in serve(folder, EMBED, **MULTI).refused([[stop]])["message"]


@pytest.mark.parametrize(
    ("config", "word"),
    [({"pooling_strategy": "mean"}, "served are max and sum"), ({"activation_function": "tanh"}, "log1p_relu")],
)
def test_what_is_not_served_is_named(
    config: dict[str, str], word: str, tiny: Tiny, serve: Serve, tmp_path: Path
) -> None:
    with pytest.raises(LoadError, match=word):
        serve(splade(tiny("bert", "fill-mask"), tmp_path / "m", config=config), EMBED, **SPARSE)


def test_modules_between_are_named(tiny: Tiny, serve: Serve, tmp_path: Path) -> None:
    folder = multi_vector(tiny("bert", "feature-extraction"), tmp_path / "m")
    listed = [{"path": "", "type": "sentence_transformers.models.Transformer"}]
    listed += [{"path": "1_Router", "type": "sentence_transformers.models.Router"}]
    write(folder / "modules.json", listed)
    with pytest.raises(LoadError, match=r"models\.Router"):
        serve(folder, EMBED, **MULTI)


class TestAgainstSentenceTransformers:
    """The library itself, where it is installed in a version that has these models."""

    def test_sparse(self, tiny: Tiny, serve: Serve, tmp_path: Path) -> None:
        library = pytest.importorskip("sentence_transformers", minversion="6.0")
        folder = splade(tiny("bert", "fill-mask"), tmp_path / "m", prompts={"query": "ask: ", "document": "tell: "})
        model = library.SparseEncoder(str(folder), device="cpu")
        expected = model.encode_query([QUERY], convert_to_sparse_tensor=False)[0]
        found = serve(folder, EMBED, **SPARSE).ok(QUERY, input_type="query")
        torch.testing.assert_close(as_tensor(found, len(expected)), expected, rtol=1e-4, atol=1e-5)
        sides = (model.encode_query([QUERY]), model.encode_document(TEXTS))
        likeness = model.similarity(*(each.to_dense() for each in sides))[0]
        torch.testing.assert_close(
            torch.tensor(serve(folder, ALIKE, **SPARSE).ok(BODY)), likeness, rtol=1e-4, atol=1e-4
        )

    @pytest.mark.parametrize("kind", [multi_vector, pylate, colbert], ids=lambda kind: kind.__name__)
    def test_late_interaction(self, kind: Callable[..., Path], tiny: Tiny, serve: Serve, tmp_path: Path) -> None:
        library = pytest.importorskip("sentence_transformers", minversion="6.0")
        folder = kind(tiny("bert", "feature-extraction"), tmp_path / "m")
        model = library.MultiVectorEncoder(str(folder), device="cpu")
        text = "Where is Anna?"
        served = serve(folder, EMBED, **MULTI)
        torch.testing.assert_close(
            torch.tensor(served.ok(text, input_type="query")), model.encode_query([text])[0], rtol=1e-3, atol=1e-4
        )
        documents = model.encode_document(TEXTS)
        for found, expected in zip(served.ok(TEXTS), documents, strict=True):
            torch.testing.assert_close(torch.tensor(found), expected, rtol=1e-3, atol=1e-4)
        likeness = model.similarity(model.encode_query([text]), documents)
        assert_agree(serve(folder, ALIKE, **MULTI).ok({**BODY, "source_sentence": text}), likeness[0].tolist())
