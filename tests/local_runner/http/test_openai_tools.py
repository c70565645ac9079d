"""Structured answers and tools through the clients that people use, unmodified, over real HTTP."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, Literal

import openai
import pytest
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, ConfigDict, Field

from local_runner.process.launch import LOOPBACK, Runner

HELLO: Any = [{"role": "user", "content": "What is the weather in Zürich?"}]
HOW: Any = {"model": "tools", "max_tokens": 400, "temperature": 1.5, "seed": 7}


class Weather(BaseModel):
    """The weather of a city."""

    model_config = ConfigDict(extra="forbid")
    city: Literal["Zürich", "Bern"]
    degrees: int = Field(ge=-30, le=45)
    warnings: list[Literal["wind", "snow"]] = Field(max_length=2)


class GetWeather(BaseModel):
    """Look the weather up."""

    model_config = ConfigDict(extra="forbid")
    city: Literal["Zürich", "Bern"]


TOOL = openai.pydantic_function_tool(GetWeather, name="get_weather")


@pytest.fixture
def client(real: Callable[[str], Runner]) -> Iterator[openai.OpenAI]:
    url = f"http://{LOOPBACK}:{real('tools').http_port}/v1"
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60) as opened:
        yield opened


@pytest.fixture
def chat(real: Callable[[str], Runner]) -> ChatOpenAI:
    url = f"http://{LOOPBACK}:{real('tools').http_port}/v1"
    return ChatOpenAI(
        base_url=url, api_key="none", model="tools", temperature=1.5, seed=7, max_tokens=400, max_retries=0
    )  # type: ignore[call-arg]


def test_parse_gives_the_model_that_was_asked_for(client: openai.OpenAI) -> None:
    told = client.chat.completions.parse(messages=HELLO, response_format=Weather, **HOW)
    assert isinstance(told.choices[0].message.parsed, Weather)
    several = client.chat.completions.parse(messages=HELLO, response_format=Weather, n=3, **HOW)
    assert all(isinstance(choice.message.parsed, Weather) for choice in several.choices)


def test_the_streaming_helper_parses_too(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(messages=HELLO, response_format=Weather, **HOW) as stream:
        kinds = [event.type for event in stream]
        told = stream.get_final_completion().choices[0].message
    assert isinstance(told.parsed, Weather)
    assert kinds.count("content.delta") > 3
    assert kinds[-1] != "error"


def test_fields_of_vllms_clients_are_taken(client: openai.OpenAI) -> None:
    for extra in (
        {"guided_choice": ["yes", "no"]},
        {"guided_regex": "yes|no"},
        {"guided_grammar": 'root ::= "yes" | "no"'},
        {"structured_outputs": {"choice": ["yes", "no"]}},
    ):
        told = client.chat.completions.create(messages=HELLO, extra_body=extra, **HOW).choices[0]
        assert told.message.content in ("yes", "no")
        assert told.finish_reason == "stop"


def test_tools_are_called_and_parsed_and_their_answers_taken(client: openai.OpenAI) -> None:
    told = client.chat.completions.parse(messages=HELLO, tools=[TOOL], tool_choice="required",
                                         parallel_tool_calls=False, **HOW)  # fmt: skip
    choice = told.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    [call] = choice.message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, GetWeather)
    answer = {"role": "tool", "tool_call_id": call.id, "content": "21 °C"}
    after = client.chat.completions.create(
        messages=[*HELLO, choice.message, answer], tools=[TOOL], **HOW | {"max_tokens": 4}
    )
    assert after.usage and after.usage.prompt_tokens > (told.usage.prompt_tokens if told.usage else 0)


def test_only_tools_that_a_choice_allows_are_called(client: openai.OpenAI) -> None:
    other: Any = {"type": "function", "function": {"name": "stop", "parameters": {"type": "object", "properties": {}}}}
    asked: Any = {"messages": HELLO, "parallel_tool_calls": False, **HOW}
    allowed: Any = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [other]}}
    told = client.chat.completions.create(tools=[TOOL, other], tool_choice=allowed, **asked).choices[0].message
    alone = client.chat.completions.create(tools=[other], tool_choice="required", **asked).choices[0].message
    assert told.tool_calls and told.model_dump() == alone.model_dump()
    for tools, names in (([TOOL], "'stop', which is none"), ([TOOL, other], "allows no tools")):
        allowed["allowed_tools"]["tools"] = [other] if tools == [TOOL] else []
        with pytest.raises(openai.BadRequestError, match=names):
            client.chat.completions.create(tools=tools, tool_choice=allowed, **asked)


def test_calls_are_streamed_as_deltas(client: openai.OpenAI) -> None:
    named: Any = {"type": "function", "function": {"name": "get_weather"}}
    asked: Any = {"messages": HELLO, "tools": [TOOL], "tool_choice": named, **HOW}
    whole = client.chat.completions.create(**asked).choices[0].message.tool_calls or []
    choices = [chunk.choices[0] for chunk in client.chat.completions.create(stream=True, **asked)]
    pieces = [delta for choice in choices for delta in choice.delta.tool_calls or []]
    assert choices[-1].finish_reason == "tool_calls"
    assert pieces[0].id == whole[0].id and pieces[0].function and pieces[0].function.name == "get_weather"
    arguments = "".join(piece.function.arguments or "" for piece in pieces if piece.function)
    assert arguments == whole[0].function.arguments  # type: ignore[union-attr]
    assert len(pieces) > 3
    with client.chat.completions.stream(**asked) as stream:
        final = stream.get_final_completion().choices[0].message.tool_calls
    assert final and final[0].function.arguments == arguments


def test_langchain_structures_answers_and_calls_tools(chat: ChatOpenAI) -> None:
    for method in ("json_schema", "function_calling"):
        told = chat.with_structured_output(Weather, method=method).invoke("The weather in Bern?")  # type: ignore[arg-type]
        assert isinstance(told, Weather), method
    bound = chat.bind_tools([GetWeather], tool_choice="any", parallel_tool_calls=False)
    said = bound.invoke("The weather in Bern?")
    [call] = said.tool_calls
    assert GetWeather.model_validate(call["args"])
    answer = ToolMessage("21 °C", tool_call_id=call["id"])
    assert chat.invoke([HumanMessage("The weather in Bern?"), said, answer]).content
    assert json.dumps(said.response_metadata)
