"""LangChain's Azure ML endpoints and their content formatters, unmodified, against real bundles of tiny models."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from local_runner.process.launch import LOOPBACK, Runner

with pytest.warns(Warning):  # the package says of itself that it is no longer maintained
    from langchain_community.chat_models.azureml_endpoint import (
        AzureMLChatOnlineEndpoint,
        CustomOpenAIChatContentFormatter,
    )
    from langchain_community.llms.azureml_endpoint import (
        AzureMLOnlineEndpoint,
        CustomOpenAIContentFormatter,
        GPT2ContentFormatter,
    )
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage

Real = Callable[[str], Runner]
PROMPT = "the quick brown"


def address(runner: Runner) -> str:
    return f"http://{LOOPBACK}:{runner.http_port}/score"


def score(runner: Runner, body: Any) -> Any:
    return httpx.post(address(runner), json=body, timeout=60).json()


@pytest.mark.parametrize("formatter", [GPT2ContentFormatter, CustomOpenAIContentFormatter])
def test_a_language_model_answers_prompts(real: Real, formatter: Any) -> None:
    runner = real("gpt2")
    model = AzureMLOnlineEndpoint(
        endpoint_url=address(runner),
        endpoint_api_key="none",
        content_formatter=formatter(),
        model_kwargs={"max_new_tokens": 5, "do_sample": False},
    )
    # The formatters put quotation marks round a prompt.
    expected = score(runner, {"inputs": f'"{PROMPT}"', "parameters": {"max_new_tokens": 5, "do_sample": False}})
    assert model.invoke(PROMPT) == expected[0]["generated_text"]


def test_a_chat_model_answers_a_conversation(real: Real) -> None:
    runner = real("chat")
    model = AzureMLChatOnlineEndpoint(
        endpoint_url=address(runner),
        endpoint_api_key="none",
        content_formatter=CustomOpenAIChatContentFormatter(),
        model_kwargs={"max_new_tokens": 5, "do_sample": False},
    )
    answer = model.invoke([SystemMessage("be brief"), HumanMessage("the quick"), AIMessage("dog"), HumanMessage("fox")])
    turns = [("system", "be brief"), ("user", "the quick"), ("assistant", "dog"), ("user", "fox")]
    body = {
        "inputs": [{"role": role, "content": content} for role, content in turns],
        "parameters": {"max_new_tokens": 5, "do_sample": False},
    }
    assert isinstance(answer, AIMessage)
    assert answer.content == score(runner, body)[0]["generated_text"][-1]["content"].strip()
