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
        with pytest.raises(openai.NotFoundError, match="No model 'other'"):
            client.chat.completions.create(model="other", **ASKED)
    assert told.choices[0].message.content == expected
    assert "".join(part.choices[0].delta.content or "" for part in parts) == expected
    with azure(runner, azure_deployment="chat") as client:  # the path's name holds, not the body's
        assert client.chat.completions.create(model="gpt-4o", **ASKED).choices[0].message.content == expected
    newer = openai.OpenAI(base_url=f"{base}/openai/v1/", api_key="none", max_retries=0, timeout=60)
    assert newer.chat.completions.create(model="chat", **ASKED).choices[0].message.content == expected
    for path in ("/openai/nothing", "/openai/deployments/chat", "/openai/deployments/chat/nothing"):
        answer = httpx.post(base + path, json=ASKED, trust_env=False)
        assert (answer.status_code, answer.json()["error"]["type"]) == (404, "invalid_request_error")


def test_a_key_may_come_as_azures_clients_send_it() -> None:
    assert key_of({"api-key": "k"}) == "k"
    assert key_of({"api-key": "k", "x-api-key": "x"}) == "x"
