"""/v1/responses through the official client, unmodified: texts, tools and their outputs, parsed answers, streams."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest

from local_runner.process.launch import Runner
from tests.local_runner.http.test_openai_tools import GetWeather, Weather

Base = Callable[[str], str]
ASK = "What is the weather in Zürich?"
HOW: Any = {"model": "tools", "max_output_tokens": 400, "temperature": 1.5, "extra_body": {"seed": 7}}
TOOL: Any = openai.pydantic_function_tool(GetWeather, name="get_weather")
FUNCTION: Any = {"type": "function", **TOOL["function"]}


@pytest.fixture
def tools(client: Callable[[str], openai.OpenAI]) -> openai.OpenAI:
    return client("tools")


@pytest.fixture
def chat(client: Callable[[str], openai.OpenAI]) -> openai.OpenAI:
    return client("chat")


def test_a_text_is_what_a_chat_answers(chat: openai.OpenAI) -> None:
    messages: Any = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "the quick brown fox"}]
    wanted = chat.chat.completions.create(model="chat", messages=messages, max_tokens=9)
    told = chat.responses.create(
        model="chat", instructions="be brief", input="the quick brown fox", max_output_tokens=9, metadata={"a": "b"}
    )
    assert told.output_text == wanted.choices[0].message.content
    assert told.usage is not None and wanted.usage is not None
    assert (told.usage.input_tokens, told.usage.output_tokens) == (
        wanted.usage.prompt_tokens,
        wanted.usage.completion_tokens,
    )
    cut = wanted.choices[0].finish_reason == "length"
    assert told.status == ("incomplete" if cut else "completed")
    assert (told.model, told.object, told.metadata, told.error) == ("chat", "response", {"a": "b"}, None)
    parts: Any = [{"role": "user", "content": [{"type": "input_text", "text": "the quick brown fox"}]}]
    again = chat.responses.create(model="chat", instructions="be brief", input=parts, max_output_tokens=9, store=False)
    assert again.output_text == told.output_text
    # An answer goes back as it came.
    more: Any = [*parts, *(item.model_dump() for item in again.output), {"role": "user", "content": "and then?"}]
    assert chat.responses.create(model="chat", input=more, max_output_tokens=4).output_text


def test_the_events_of_a_text_come_in_order(chat: openai.OpenAI) -> None:
    asked: Any = {"model": "chat", "input": "the quick brown fox", "max_output_tokens": 9}
    whole = chat.responses.create(**asked)
    events = list(chat.responses.create(**asked, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type.removeprefix("response.") for event in events]
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    first = ["created", "in_progress", "output_item.added", "content_part.added"]
    last = ["output_text.done", "content_part.done", "output_item.done", whole.status]
    assert kinds == [*first, *["output_text.delta"] * len(deltas), *last]
    assert "".join(event.delta for event in deltas) == whole.output_text
    final: Any = events[-1]
    assert final.response.output_text == whole.output_text
    assert final.response.usage == whole.usage
    assert {event.item_id for event in deltas} == {final.response.output[0].id}


def test_log_probabilities(chat: openai.OpenAI) -> None:
    asked: Any = {"model": "chat", "input": "the quick", "max_output_tokens": 5, "top_logprobs": 2}
    asked["include"] = ["message.output_text.logprobs"]
    whole: Any = chat.responses.create(**asked).output[0]
    told = whole.content[0].logprobs
    assert "".join(token.token for token in told) == whole.content[0].text
    assert all(len(token.top_logprobs) == 2 for token in told)
    events = chat.responses.create(**asked, stream=True)
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    assert [each.logprob for event in deltas for each in event.logprobs] == [token.logprob for token in told]


def test_log_probabilities_leave_a_call_whole(tools: openai.OpenAI) -> None:
    asked: Any = {"tools": [FUNCTION], "tool_choice": {"type": "function", "name": "get_weather"}, **HOW}
    asked["include"] = ["message.output_text.logprobs"]
    [call] = tools.responses.create(input=ASK, **asked).output
    last: Any = list(tools.responses.create(input=ASK, **asked, stream=True))[-1]
    assert last.type == "response.completed"
    assert [(item.type, item.arguments) for item in last.response.output] == [
        (call.type, getattr(call, "arguments", ""))
    ]


def test_a_parsed_answer_whole_and_streamed(tools: openai.OpenAI) -> None:
    told = tools.responses.parse(input=ASK, text_format=Weather, **HOW)
    assert isinstance(told.output_parsed, Weather)
    with tools.responses.stream(input=ASK, text_format=Weather, **HOW) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert final.output_parsed == told.output_parsed
    assert kinds[-1] == "response.completed"


def test_tools_are_called_and_their_outputs_go_back(tools: openai.OpenAI) -> None:
    asked: Any = {"tools": [FUNCTION], "tool_choice": {"type": "function", "name": "get_weather"}, **HOW}
    told = tools.responses.parse(input=ASK, **asked)
    other, allowed = FUNCTION | {"name": "other"}, {"type": "allowed_tools", "mode": "required"}
    among: Any = {"tools": [other, FUNCTION], "tool_choice": allowed | {"tools": [asked["tool_choice"]]}}
    [first, *_] = tools.responses.create(input=ASK, **asked | among).output
    assert first.type == "function_call" and first.name == "get_weather"
    [call] = told.output
    assert call.type == "function_call"
    assert GetWeather.model_validate(call.parsed_arguments)
    with tools.responses.stream(input=ASK, **asked) as stream:
        events = list(stream)
    kinds = [event.type.removeprefix("response.") for event in events]
    deltas: Any = [event for event in events if event.type == "response.function_call_arguments.delta"]
    assert kinds[2] == "output_item.added"
    assert kinds[3 + len(deltas) :] == ["function_call_arguments.done", "output_item.done", "completed"]
    assert "".join(event.delta for event in deltas) == call.arguments
    final: Any = events[-1]
    assert (final.response.output[0].call_id, final.response.output[0].name) == (call.call_id, "get_weather")
    formatted = tools.responses.parse(input=ASK, text_format=Weather, **asked)  # a call has no text to be formatted
    assert [(item.type, getattr(item, "arguments", "")) for item in formatted.output] == [(call.type, call.arguments)]
    output = {"type": "function_call_output", "call_id": call.call_id, "output": '{"degrees": 3}'}
    items: Any = [{"role": "user", "content": ASK}, call.model_dump(exclude={"parsed_arguments"}), output]
    back = tools.responses.create(input=items, tools=[FUNCTION], tool_choice="none", **HOW)
    messages: Any = [
        items[0],
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": call.call_id,
                    "type": "function",
                    "function": {"name": "get_weather", "arguments": call.arguments},
                }
            ],
        },
        {"role": "tool", "tool_call_id": call.call_id, "content": output["output"]},
    ]
    wanted = tools.chat.completions.create(
        model="tools", messages=messages, max_tokens=400, temperature=1.5, seed=7, tools=[TOOL], tool_choice="none"
    )
    assert back.output_text == (wanted.choices[0].message.content or "")
    assert back.usage is not None and wanted.usage is not None
    assert back.usage.input_tokens == wanted.usage.prompt_tokens


@pytest.mark.parametrize(
    ("more", "told", "param"),
    [
        ({"store": True}, "Nothing is stored here.", "store"),
        ({"previous_response_id": "resp_1"}, "Nothing is stored here.", "previous_response_id"),
        ({"conversation": "c"}, "Nothing is stored here.", "conversation"),
        ({"background": True}, "background is not served", "background"),
        ({"num_return_sequences": 2, "do_sample": True}, "is not served", "num_return_sequences"),
        ({"truncation": "auto"}, "truncation is not served", "truncation"),
        ({"input": []}, "The input is a text", "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "parts of text", "input[0].content[0]"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "'item_reference' is not served", "input[0].type"),
        ({"input": [{"role": "narrator", "content": "a"}]}, "Input should be", "input"),
        ({"input": [3]}, "An item is a JSON object", "input[0]"),
        ({"instructions": 3}, "instructions are a text", "instructions"),
        ({"tools": [{"type": "web_search"}]}, "Only functions are called here", "tools[0]"),
        ({"tool_choice": {"type": "file_search"}}, "names a function", "tool_choice"),
        ({"max_output_tokens": 10**7}, "max_output_tokens is 10000000", "max_output_tokens"),
        ({"include": ["file_search_call.results"]}, "can be included", "include"),
        ({"reasoning": {"effort": "high"}}, "knows no thought", "reasoning.effort"),
        ({"reasoning": {"effort": "none", "summary": "detailed"}}, "without a summary", "reasoning.summary"),
        ({"reasoning_effort": "none"}, "is not served", "reasoning_effort"),
        ({"text": {"verbosity": "low"}}, 'holds a "format"', "text"),
        (
            {"text": {"format": {"type": "json_schema", "schema": {"not": {}}, "strict": True}}},
            "",
            "text.format.schema",
        ),
        ({"text": {"format": {"type": "xml"}}}, "Input should be", "text.format.type"),
        ({"top_logprobs": 2}, "needs logprobs", "top_logprobs"),
        ({"temperature": -1}, "greater than or equal to 0", "temperature"),
        ({"colour": "red"}, "Unknown parameter 'colour'", "colour"),
        ({"stream_options": {"x": 1}, "stream": True}, "stream_options.x", "stream_options.x"),
    ],
    ids=str,
)
def test_what_is_not_served_is_refused_by_the_callers_name(
    base: Base, more: dict[str, Any], told: str, param: str
) -> None:
    body = {"input": "a", **more}
    answer = httpx.post(f"{base('tools')}/v1/responses", json=body, trust_env=False, timeout=60)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param)
    assert told in error["message"]


def test_other_tasks_and_models_are_refused(base: Base, real: Callable[[str], Runner]) -> None:
    for name, body, status in (("gpt2", {"input": "a"}, 400), ("tools", {"input": "a", "model": "other"}, 404)):
        answer = httpx.post(f"{base(name)}/v1/responses", json=body, trust_env=False, timeout=60)
        assert (answer.status_code, answer.json()["error"]["param"]) == (status, "model")
    streamed = {"input": "a", "stream": True, "max_output_tokens": 3}
    text = httpx.post(f"{base('tools')}/v1/responses", json=streamed, trust_env=False, timeout=60).text
    for event in text.strip().split("\n\n"):
        head, data = event.split("\n")
        assert head == f"event: {json.loads(data.removeprefix('data: '))['type']}"
