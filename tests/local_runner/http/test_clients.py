"""Clients that people have for other servers, unmodified, against real bundles of tiny models.

Tried with cohere 7.3.1, instructor 1.17.0, llama-index-llms-openai-like 0.8.1 and
llama-index-embeddings-openai-like 0.4.0. Their pins keep some of them out of an environment with the newest openai:
`make clients` has an environment for each.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Literal

import httpx
import openai
import pytest
from pydantic import BaseModel, ConfigDict, Field

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("forked")]

Base = Callable[[str], str]
DOCUMENTS = ["the quick brown fox", "a fine day", "snow over the bridge"]
QUERY = "what jumps over the dog?"
ASKED: Any = [{"role": "user", "content": "What is the weather in Zürich?"}]


class Place(BaseModel):
    city: Literal["Zürich", "Bern"]


class Weather(BaseModel):
    """The weather of a city."""

    model_config = ConfigDict(extra="forbid")
    city: Literal["Zürich", "Bern"]
    degrees: int = Field(ge=-30, le=45)


def scores(url: str) -> list[float]:
    """Scores of the documents in their order, as /v1/score has them."""
    body = {"text_1": QUERY, "text_2": DOCUMENTS}
    told = httpx.post(f"{url}/v1/score", json=body, trust_env=False, timeout=60).json()
    return [each["score"] for each in told["data"]]


def test_cohere_ranks(base: Base) -> None:
    cohere = pytest.importorskip("cohere")
    expected = scores(base("rerank"))
    order = sorted(range(len(DOCUMENTS)), key=lambda at: -expected[at])
    for client in (cohere.ClientV2, cohere.Client):
        with client(api_key="none", base_url=base("rerank")) as opened:
            told = opened.rerank(model="rerank", query=QUERY, documents=DOCUMENTS, top_n=2)
            assert [each.index for each in told.results] == order[:2]
            found = [each.relevance_score for each in told.results]
            assert found == pytest.approx([expected[at] for at in order[:2]], rel=1e-5)
            with pytest.raises(cohere.core.api_error.ApiError) as caught:
                opened.rerank(model="rerank", query=QUERY, documents=[])
            assert caught.value.status_code == 400


@pytest.mark.parametrize("mode", ["TOOLS", "JSON_SCHEMA"])
def test_instructor_gives_the_model_that_was_asked_for(base: Base, mode: str) -> None:
    instructor = pytest.importorskip("instructor")
    with openai.OpenAI(base_url=base("tools") + "/v1", api_key="none", max_retries=0, timeout=60) as opened:
        client = instructor.from_openai(opened, mode=instructor.Mode[mode])
        how: Any = {"model": "tools", "max_tokens": 400, "temperature": 1.5, "seed": 7, "max_retries": 0}
        told = client.chat.completions.create(messages=ASKED, response_model=Weather, **how)
        assert told.city in ("Zürich", "Bern")
        parts = list(client.chat.completions.create_partial(messages=ASKED, response_model=Weather, **how))
        assert parts[-1].model_dump() == told.model_dump()


def test_llama_index_completes_chats_and_embeds(base: Base) -> None:
    llms = pytest.importorskip("llama_index.llms.openai_like")
    embeddings = pytest.importorskip("llama_index.embeddings.openai_like")
    core = pytest.importorskip("llama_index.core.llms")
    how: Any = {"api_key": "none", "temperature": 0, "max_tokens": 8, "context_window": 128, "max_retries": 0}
    model = llms.OpenAILike(model="chat", api_base=base("chat") + "/v1", is_chat_model=True, **how)
    body = {"model": "chat", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8, "temperature": 0}
    plain = httpx.post(base("chat") + "/v1/chat/completions", json=body, trust_env=False, timeout=60).json()
    expected = plain["choices"][0]["message"]["content"]
    said = [core.ChatMessage(role="user", content="hello")]
    assert model.chat(said).message.content == expected
    assert "".join(each.delta for each in model.stream_chat(said)) == expected
    completing = llms.OpenAILike(model="gpt2", api_base=base("gpt2") + "/v1", is_chat_model=False, **how)
    assert completing.complete("Once upon").text
    vectors = embeddings.OpenAILikeEmbedding(model_name="embed", api_base=base("embed") + "/v1", api_key="none")
    raw = httpx.post(base("embed") + "/v1/embeddings", json={"input": DOCUMENTS}, trust_env=False, timeout=60).json()
    for found, each in zip(vectors.get_text_embedding_batch(DOCUMENTS), raw["data"], strict=True):
        assert found == pytest.approx(each["embedding"], abs=1e-6)


def test_llama_index_calls_tools(base: Base) -> None:
    llms = pytest.importorskip("llama_index.llms.openai_like")
    tools = pytest.importorskip("llama_index.core.tools")
    model = llms.OpenAILike(
        model="tools", api_base=base("tools") + "/v1", api_key="none", is_chat_model=True,
        is_function_calling_model=True, max_tokens=400, temperature=1.5, context_window=1024, max_retries=0,
        additional_kwargs={"seed": 7},
    )  # fmt: skip

    told = {"name": "weather", "description": "Look it up.", "fn_schema": Place}
    tool = tools.FunctionTool.from_defaults(lambda city: f"fine in {city}", **told)
    answer = model.chat_with_tools([tool], user_msg="What is the weather in Zürich?", tool_required=True)
    (call, *_) = model.get_tool_calls_from_response(answer)
    assert call.tool_name == "weather"
    assert call.tool_kwargs["city"] in ("Zürich", "Bern"), json.dumps(call.tool_kwargs)
