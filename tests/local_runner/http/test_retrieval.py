"""/v1/rerank and /v1/score over a real bundle, against what /score answers there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError

from local_runner.process.launch import Runner
from tests.scoring.encoders import LONG, TEXTS, assert_agree

QUERY = "Where does Anna live?"


@pytest.fixture(scope="module")
def http(real: Callable[[str], Runner]) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://127.0.0.1:{real('rerank').http_port}", timeout=60) as opened:
        yield opened


def score(http: httpx.Client, inputs: Any, **parameters: Any) -> Any:
    answer = http.post("/score", json={"inputs": inputs, "parameters": parameters})
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank"])
def test_documents_are_answered_the_best_first(path: str, http: httpx.Client) -> None:
    expected = score(http, {"query": QUERY, "texts": TEXTS})
    sent = {"model": "rerank", "query": QUERY, "documents": TEXTS, "top_n": 3, "return_documents": True}
    told = http.post(path, json=sent).json()
    named = [
        {"index": e["index"], "score": e["relevance_score"], "text": e["document"]["text"]} for e in told["results"]
    ]
    assert_agree(named, [{**each, "text": TEXTS[each["index"]]} for each in expected[:3]])
    assert told["id"] and told["model"] == "rerank"
    assert told["usage"]["total_tokens"] == told["usage"]["prompt_tokens"] > 0
    assert told["meta"]["api_version"] == {"version": path[2]}


def test_documents_may_be_objects_and_come_back_as_sent(http: httpx.Client) -> None:
    documents = [{"text": text, "id": at} for at, text in enumerate(TEXTS)]
    told = http.post("/v1/rerank", json={"query": QUERY, "documents": documents, "return_documents": True}).json()
    assert [each["document"]["id"] for each in told["results"]] == [each["index"] for each in told["results"]]
    assert "document" not in http.post("/v1/rerank", json={"query": QUERY, "documents": documents}).json()["results"][0]


def test_long_documents_are_cut_and_told_unless_they_must_not_be(http: httpx.Client) -> None:
    body = {"query": QUERY, "documents": ["short", LONG]}
    assert http.post("/v1/rerank", json=body).json()["meta"]["warnings"] == [
        "Documents were cut at the context length: 1."
    ]
    refused = http.post("/v1/rerank", json=body | {"truncation": False})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "documents[1]")


def test_scores_of_one_text_with_each_and_text_by_text(http: httpx.Client) -> None:
    expected = score(http, [[QUERY, text] for text in TEXTS])
    for first in (QUERY, [QUERY], [QUERY] * len(TEXTS)):
        told = http.post("/v1/score", json={"text_1": first, "text_2": TEXTS, "model": "rerank"}).json()
        assert [each["index"] for each in told["data"]] == list(range(len(TEXTS)))
        assert_agree([each["score"] for each in told["data"]], expected)
    (one,) = http.post("/v1/score", json={"text_1": QUERY, "text_2": TEXTS[0]}).json()["data"]
    assert_agree(one["score"], expected[0])
    cut = http.post("/v1/score", json={"text_1": QUERY, "text_2": LONG, "truncate_prompt_tokens": -1})
    assert cut.status_code == 200


def test_vectors_are_compared_where_the_task_is_to(real: Callable[[str], Runner]) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{real('alike').http_port}", timeout=60) as http:
        expected = score(http, {"source_sentence": QUERY, "sentences": TEXTS})
        told = http.post("/v1/score", json={"text_1": QUERY, "text_2": TEXTS}).json()
        assert_agree([each["score"] for each in told["data"]], expected)
        told = http.post("/v1/score", json={"text_1": [QUERY] * len(TEXTS), "text_2": TEXTS}).json()
        assert_agree([each["score"] for each in told["data"]], expected)
        told = http.post("/v1/rerank", json={"query": QUERY, "documents": [*TEXTS, LONG], "top_n": 2}).json()
        best = score(http, {"source_sentence": QUERY, "sentences": [*TEXTS, LONG]}, truncation=True)
        order = sorted(range(len(best)), key=lambda number: -best[number])[:2]
        assert [each["index"] for each in told["results"]] == order
        assert told["meta"]["warnings"] == ["Documents were cut at the context length."]
        refused = http.post("/v1/rerank", json={"query": QUERY, "documents": ["a", ""], "top_n": 2})
        assert refused.json()["error"]["param"] == "documents[1]"
        assert http.post("/v1/rerank", json={"query": "a", "documents": ["a"], "top_n": 0}).status_code == 400


def test_the_hubs_client_compares_and_labels_unmodified(
    real: Callable[[str], Runner], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # it asks no hub, but this runner
    alike, labels = (f"http://127.0.0.1:{real(name).http_port}" for name in ("alike", "labels"))
    with httpx.Client(base_url=alike, timeout=60) as http:
        expected = score(http, {"source_sentence": QUERY, "sentences": TEXTS})
    assert_agree(InferenceClient(alike).sentence_similarity(QUERY, other_sentences=TEXTS), expected)
    asked = {"candidate_labels": ["a place", "a person"], "multi_label": True}
    with httpx.Client(base_url=labels, timeout=60) as http:
        whole = score(http, QUERY, **asked)
    told = InferenceClient(labels).zero_shot_classification(QUERY, **asked)
    assert_agree([each.label for each in told], whole["labels"])
    assert_agree([each.score for each in told], whole["scores"])
    with pytest.raises(HfHubHTTPError, match="Bad request"):
        InferenceClient(labels).zero_shot_classification(QUERY, candidate_labels=[])


@pytest.mark.parametrize(
    ("path", "changes", "status", "param"),
    [
        ("/v1/rerank", {"documents": []}, 400, "documents"),
        ("/v1/rerank", {"documents": ["a", 5]}, 400, "documents[1]"),
        ("/v1/rerank", {"documents": ["a"] * 2049}, 400, "documents"),
        ("/v1/rerank", {"query": ""}, 400, "query"),
        ("/v1/rerank", {"query": ["a"]}, 400, "query"),
        ("/v1/rerank", {"top_n": 0}, 400, "top_n"),
        ("/v1/rerank", {"return_documents": "yes"}, 400, "return_documents"),
        ("/v1/rerank", {"rank_fields": ["title"]}, 400, "rank_fields"),
        ("/v1/rerank", {"other": 1}, 400, "other"),
        ("/v1/rerank", {"model": "gpt-4"}, 404, "model"),
        ("/v1/score", {"text_2": None}, 400, "text_2"),
        ("/v1/score", {"text_1": ["a", "b"]}, 400, "text_1"),
        ("/v1/score", {"text_1": "", "text_2": "a"}, 400, "text_1"),
        ("/v1/score", {"text_2": [LONG, "a"]}, 400, "text_2[0]"),
        ("/v1/score", {"text_1": ["a", "b"], "text_2": ["a", LONG]}, 400, "text_2[1]"),
        ("/v1/score", {"truncate_prompt_tokens": 7}, 400, "truncate_prompt_tokens"),
    ],
    ids=str,
)
def test_refusals_name_the_callers_field(
    path: str, changes: dict[str, Any], status: int, param: str, http: httpx.Client
) -> None:
    sound = {"query": QUERY, "documents": ["a"]} if path == "/v1/rerank" else {"text_1": QUERY, "text_2": ["a"] * 3}
    answer = http.post(path, json=sound | changes)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param), answer.text


def test_the_document_describes_both(http: httpx.Client) -> None:
    paths = http.get("/openapi.json").json()["paths"]
    for path in ("/v1/rerank", "/v1/score"):
        assert paths[path]["post"]["requestBody"]["content"]["application/json"]["schema"]["required"]


def test_the_two_sides_have_each_of_vllms_names(http: httpx.Client) -> None:
    expected = http.post("/v1/score", json={"text_1": QUERY, "text_2": TEXTS}).json()["data"]
    for first, second in (("queries", "documents"), ("data_1", "data_2")):
        assert http.post("/v1/score", json={first: QUERY, second: TEXTS}).json()["data"] == expected
        refused = http.post("/v1/score", json={first: [QUERY] * 2, second: TEXTS[:1]}).json()["error"]
        assert refused["param"] == first and second in refused["message"]


def test_vllms_truncation_is_taken_and_a_remedy_is_in_the_callers_words(http: httpx.Client) -> None:
    body = {"query": QUERY, "documents": ["short", LONG]}
    usual = http.post("/v1/rerank", json=body).json()["results"]
    assert http.post("/v1/rerank", json=body | {"truncate_prompt_tokens": -1}).json()["results"] == usual
    for more, told in (({"truncation": False}, 'set "truncation": true'), ({"truncate_prompt_tokens": 4}, "-1 cuts")):
        message = http.post("/v1/rerank", json=body | more).json()["error"]["message"]
        assert told in message and "parameters" not in message
