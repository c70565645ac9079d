"""huggingface_hub's InferenceClient, unmodified, generating text; and text-generation-inference's own routes."""

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError, ValidationError

from local_runner.process.launch import LOOPBACK, Runner

PROMPT = "the quick brown"


@pytest.fixture
def url(real: Callable[[str], Runner], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # it asks no hub, but this runner
    return f"http://{LOOPBACK}:{real('gpt2').http_port}"


def score(url: str, **parameters: Any) -> dict[str, Any]:
    body = {"inputs": PROMPT, "parameters": parameters}
    answers: list[dict[str, Any]] = httpx.post(f"{url}/score", json=body, trust_env=False, timeout=60).json()
    return answers[0]


@pytest.mark.parametrize("path", ["", "/generate"])
def test_the_client_gets_a_text_and_its_details(url: str, path: str) -> None:
    client, asked = InferenceClient(url + path, timeout=60), {"max_new_tokens": 6, "return_full_text": False}
    expected = score(url, **asked, return_details=True, top_n_tokens=2)
    assert client.text_generation(PROMPT, **asked) == expected["generated_text"]
    # Written out by every client: what asks for nothing.
    usual: Any = {"stop": [], "watermark": False, "best_of": 1, "decoder_input_details": False}
    told = client.text_generation(PROMPT, **asked, **usual, details=True, top_n_tokens=2)
    assert told.generated_text == expected["generated_text"]
    assert [each.logprob for each in told.details.tokens] == [t["logprob"] for t in expected["details"]["tokens"]]
    assert [[each["id"] for each in tops] for tops in told.details.top_tokens] == [
        [each["id"] for each in tops] for tops in expected["details"]["top_tokens"]
    ]
    assert told.details.finish_reason == expected["details"]["finish_reason"]


@pytest.mark.parametrize(("path", "full"), [("", True), ("/generate_stream", False)])
def test_the_client_streams(url: str, path: str, full: bool) -> None:
    client = InferenceClient(url + path, timeout=60)
    expected = score(url, max_new_tokens=7, return_full_text=False, return_details=True, seed=3, temperature=1.5)
    asked: Any = {"max_new_tokens": 7, "seed": 3, "temperature": 1.5, "stream": True}
    assert "".join(client.text_generation(PROMPT, **asked)) == expected["generated_text"]
    *others, last = client.text_generation(PROMPT, **asked, details=True, top_n_tokens=1)
    assert [each.token.id for each in (*others, last)] == [t["id"] for t in expected["details"]["tokens"]]
    assert [each.index for each in (*others, last)] == list(range(1, len(others) + 2))
    assert {each.generated_text for each in others} == {None}
    assert last.generated_text == (PROMPT if full else "") + expected["generated_text"]
    assert last.details.generated_tokens == len(others) + 1
    assert (last.details.seed, last.details.input_length > 0) == (3, True)
    assert last.top_tokens[0].logprob >= last.token.logprob


def test_a_grammar_and_a_stop_text(url: str) -> None:
    client = InferenceClient(url, timeout=60)
    grammar: Any = {"type": "regex", "value": "(yes|no)"}
    assert client.text_generation(PROMPT, grammar=grammar, max_new_tokens=8, return_full_text=False) in ("yes", "no")
    text = score(url, max_new_tokens=8, return_full_text=False)["generated_text"]
    cut = client.text_generation(PROMPT, max_new_tokens=8, return_full_text=False, stop=[text[0]], stream=True)
    assert "".join(cut) == ""


@pytest.mark.parametrize(
    ("parameters", "place"),
    [
        ({"watermark": True}, "parameters.watermark"),
        ({"best_of": 2}, "parameters.best_of"),
        ({"adapter_id": "a"}, "parameters.adapter_id"),
        ({"grammar": {"type": "xml", "value": 1}}, "parameters.grammar"),
        ({"grammar": {"type": "json_schema", "value": {}}}, "parameters.grammar.value.schema"),
        ({"max_new_tokens": 10**6}, "parameters.max_new_tokens"),
    ],
    ids=str,
)
def test_what_is_not_served_is_refused_in_the_clients_form(url: str, parameters: dict[str, Any], place: str) -> None:
    for path in ("/generate", "/generate_stream"):
        body = {"inputs": PROMPT, "parameters": parameters}
        answer = httpx.post(url + path, json=body, trust_env=False, timeout=60)
        told = answer.json()
        assert (answer.status_code, told["error_type"], told["where"]) == (400, "validation", place)
    with pytest.raises(ValidationError, match=told["error"].split(".")[0][:40]):
        InferenceClient(url + "/generate", timeout=60).text_generation(PROMPT, **parameters)
    with pytest.raises(HfHubHTTPError):
        InferenceClient(url, timeout=60).text_generation(PROMPT, **parameters)


def test_several_answers_come_in_the_list_that_there_is_at_the_root(url: str) -> None:
    body = {"inputs": PROMPT, "parameters": {"max_new_tokens": 5, "num_return_sequences": 3, "seed": 2, "top_k": 50}}
    body["parameters"] |= {"do_sample": True, "temperature": 1.5}
    wanted = httpx.post(f"{url}/score", json=body, trust_env=False, timeout=60).json()
    told = httpx.post(url, json=body, headers={"user-agent": "hf_hub/2"}, trust_env=False, timeout=60).json()
    assert told == wanted
    assert len({answer["generated_text"] for answer in told}) == 3
    for path in ("/generate", "/generate_stream"):
        refused = httpx.post(url + path, json=body, trust_env=False, timeout=60)
        assert (refused.status_code, refused.json()["where"]) == (400, "parameters.num_return_sequences")


@pytest.mark.parametrize("body", [b"{", b"[]", b"{}", b'{"inputs": 3}', b'{"inputs": "a", "parameters": 1}'], ids=str)
def test_bodies_that_are_none(url: str, body: bytes) -> None:
    for path in ("/generate", "/generate_stream", ""):
        headers = {"user-agent": "hf_hub/2"}
        answer = httpx.post(url + path, content=body, headers=headers, trust_env=False, timeout=60)
        assert (answer.status_code, "error" in answer.json()) == (400, True)


def test_whoever_is_no_such_client_gets_the_canonical_form_at_the_root(url: str) -> None:
    body = {"inputs": PROMPT, "parameters": {"max_new_tokens": 2}, "stream": True}
    text = httpx.post(url, json=body, trust_env=False, timeout=60).text
    assert "answer" in json.loads(text.split("\n\n")[-3].removeprefix("data: "))


def test_the_client_asks_for_health_and_limits(url: str) -> None:
    client = InferenceClient(url, provider="hf-inference")
    assert client.health_check()
    assert httpx.head(f"{url}/health", trust_env=False).status_code == 200
    assert client.get_endpoint_info()["model_pipeline_tag"] == "text-generation"
    other = httpx.post(f"{url}/generate", json={"inputs": [PROMPT]}, trust_env=False).json()
    assert other["where"] == "inputs"
