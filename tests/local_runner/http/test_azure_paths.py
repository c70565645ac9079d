"""Azure OpenAI's client, unmodified, over real HTTP: its answers are those of /v1."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest

from local_runner.host.callers import key_of
from local_runner.process.launch import LOOPBACK, Runner

ASKED: Any = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 6, "temperature": 0}


def azure(runner: Runner, **more: Any) -> openai.AzureOpenAI:
    url = f"http://{LOOPBACK}:{runner.http_port}"
    return openai.AzureOpenAI(
        azure_endpoint=url, api_key="none", api_version="2024-10-21", max_retries=0, timeout=60, **more
    )


def test_a_deployment_in_the_path_is_the_model(real: Callable[[str], Runner]) -> None:
    runner = real("chat")
    base = f"http://{LOOPBACK}:{runner.http_port}"
    own = httpx.post(f"{base}/v1/chat/completions", json=ASKED, trust_env=False).json()
    expected = own["choices"][0]["message"]["content"]
    with azure(runner) as client:
        told = client.chat.completions.create(model="chat", **ASKED)
        parts = [each for each in client.chat.completions.create(model="chat", stream=True, **ASKED) if each.choices]
        assert [each.id for each in client.models.list()] == ["chat", "terse"]
        with pytest.raises(openai.NotFoundError, match="No model 'other'") as failure:
            client.chat.completions.create(model="other", **ASKED)
    assert failure.value.code == "DeploymentNotFound"
    assert told.choices[0].message.content == expected
    assert "".join(part.choices[0].delta.content or "" for part in parts) == expected
    with azure(runner, azure_deployment="chat") as client:  # the path's name holds, not the body's
        assert client.chat.completions.create(model="gpt-4o", **ASKED).choices[0].message.content == expected
    newer = openai.OpenAI(base_url=f"{base}/openai/v1/", api_key="none", max_retries=0, timeout=60)
    assert newer.chat.completions.create(model="chat", **ASKED).choices[0].message.content == expected
    for path in ("/openai/nothing", "/openai/deployments/chat", "/openai/deployments/chat/nothing"):
        answer = httpx.post(base + path, json=ASKED, trust_env=False)
        assert (answer.status_code, answer.json()["error"]["type"]) == (404, "invalid_request_error")


def test_completions_and_vectors_of_a_deployment_in_the_path(real: Callable[[str], Runner]) -> None:
    asked: Any = {"prompt": "a fine day", "max_tokens": 5, "temperature": 0}
    base = f"http://{LOOPBACK}:{real('gpt2').http_port}"
    own = httpx.post(f"{base}/v1/completions", json=asked, trust_env=False).json()
    with azure(real("gpt2")) as client:
        assert client.completions.create(model="gpt2", **asked).choices[0].text == own["choices"][0]["text"]
        parts = client.completions.create(model="gpt2", stream=True, **asked)
        assert "".join(part.choices[0].text for part in parts) == own["choices"][0]["text"]
        with pytest.raises(openai.BadRequestError, match="This deployment serves text-generation"):
            client.embeddings.create(model="gpt2", input="a")
    base = f"http://{LOOPBACK}:{real('embed').http_port}"
    texts = {"input": ["A man eats.", "It rains."], "encoding_format": "float"}
    vectors = httpx.post(f"{base}/v1/embeddings", json=texts, trust_env=False).json()["data"]
    with azure(real("embed")) as client:
        found = client.embeddings.create(model="embed", input=["A man eats.", "It rains."])
        with pytest.raises(openai.NotFoundError) as failure:
            client.embeddings.create(model="nothing", input="a")
    for told, vector in zip(found.data, vectors, strict=True):
        assert told.embedding == pytest.approx(vector["embedding"], abs=1e-5)
    assert (failure.value.code, failure.value.param) == ("DeploymentNotFound", "model")


def test_a_key_may_come_as_azures_clients_send_it() -> None:
    assert key_of({"api-key": "k"}) == "k"
    assert key_of({"api-key": "k", "x-api-key": "x"}) == "x"
