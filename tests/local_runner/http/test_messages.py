"""Anthropic's messages over real bundles: the answers of /v1/chat/completions in their form, whole and as events."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.local_runner.http.test_openai import Base, Client

HELLO: Any = [{"role": "user", "content": "What is the weather in Zürich?"}]
SCHEMA = {"type": "object", "properties": {"city": {"enum": ["Zürich", "Bern"]}}, "required": ["city"]}
TOOL = {"name": "get_weather", "description": "Weather.", "input_schema": {**SCHEMA, "additionalProperties": False}}
Post = Callable[..., Any]


@pytest.fixture
def post(base: Base) -> Post:
    def posted(body: dict[str, Any], status: int = 200, path: str = "/v1/messages", server: str = "tools") -> Any:
        answer = httpx.post(base(server) + path, json={"max_tokens": 8, **body}, trust_env=False, timeout=60)
        assert answer.status_code == status, answer.text
        return answer.json()

    return posted


def call(**fields: Any) -> dict[str, Any]:
    """Message of the assistant that calls a tool."""
    block = {"type": "tool_use", "id": "a", "name": "get_weather", "input": {}, **fields}
    return {"role": "assistant", "content": [block]}


def put_together(base: Base, body: dict[str, Any]) -> dict[str, Any]:
    """The message that a stream's events tell, put together as the official client does; their order is checked."""
    message: dict[str, Any] = {}
    kinds = []
    with httpx.stream("POST", base("tools") + "/v1/messages", json={**body, "stream": True}, trust_env=False) as got:
        assert got.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in got.iter_lines() if line]
    for name, data in zip(lines[::2], lines[1::2], strict=True):
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        kinds.append(event["type"])
        if event["type"] == "message_start":
            message = event["message"]
        elif event["type"] == "content_block_start":
            assert event["index"] == len(message["content"])
            message["content"].append({**event["content_block"], "json": ""})
        elif event["type"] == "content_block_delta":
            block, delta = message["content"][event["index"]], event["delta"]
            name = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": "partial_json"}[
                delta["type"]
            ]
            own = "json" if name == "partial_json" else name
            block[own] += delta[name]
        elif event["type"] == "message_delta":
            message = {**message, **event["delta"], "usage": event["usage"]}
    assert (kinds[0], kinds[-2:]) == ("message_start", ["message_delta", "message_stop"])
    assert kinds.count("content_block_start") == kinds.count("content_block_stop") == len(message["content"])
    for block in message["content"]:
        arguments = block.pop("json")
        if block["type"] == "tool_use":
            block["input"] = json.loads(arguments)
    return message


def test_a_message_is_answered_as_a_chat_is(post: Post, client: Client, base: Base) -> None:
    wanted = client("tools").chat.completions.create(
        model="tools", messages=[{"role": "system", "content": "Be brief."}, *HELLO], max_tokens=8
    )
    blocks = [{"type": "text", "text": HELLO[0]["content"], "cache_control": {"type": "ephemeral"}}]
    for system, content in (("Be brief.", HELLO[0]["content"]), ([{"type": "text", "text": "Be brief."}], blocks)):
        body = {"model": "tools", "system": system, "messages": [{"role": "user", "content": content}], "max_tokens": 8}
        told = post(body)
        assert told["content"] == [{"type": "text", "text": wanted.choices[0].message.content}]
        assert (told["type"], told["role"], told["model"]) == ("message", "assistant", "tools")
        assert (told["stop_reason"], told["stop_sequence"]) == ("max_tokens", None)
        assert wanted.usage is not None
        counted = told["usage"]["input_tokens"], told["usage"]["output_tokens"]
        assert counted == (wanted.usage.prompt_tokens, wanted.usage.completion_tokens)
        streamed = put_together(base, body)
        assert {**streamed, "id": told["id"]} == told
        asked = {name: value for name, value in body.items() if name != "max_tokens"}
        count = httpx.post(base("tools") + "/v1/messages/count_tokens", json=asked, trust_env=False, timeout=60)
        assert count.json() == {"input_tokens": counted[0]}


def test_a_stop_sequence_is_named(post: Post, base: Base) -> None:
    text = post({"messages": HELLO})["content"][0]["text"]
    stop = next(character for character in text[2:] if character.isprintable() and character not in text[:2])
    body = {"messages": HELLO, "stop_sequences": ["never", stop], "max_tokens": 8}
    told = post(body)
    assert told["content"][0]["text"] == text[: text.index(stop)]
    assert (told["stop_reason"], told["stop_sequence"]) == ("stop_sequence", stop)
    assert put_together(base, body)["stop_sequence"] == stop
    ended = post({"messages": HELLO, "stop_sequences": ["never"], "guided_choice": ["yes"]})
    assert (ended["stop_reason"], ended["stop_sequence"]) == ("end_turn", None)


def test_tools_are_called_and_their_results_go_back(post: Post, base: Base) -> None:
    one = {"type": "any", "disable_parallel_tool_use": True}
    body = {"messages": HELLO, "tools": [TOOL], "tool_choice": one, "max_tokens": 400, "temperature": 1.5, "seed": 7}
    told = post(body)
    [call] = told["content"]
    assert (call["type"], call["name"], told["stop_reason"]) == ("tool_use", "get_weather", "tool_use")
    assert call["input"]["city"] in ("Zürich", "Bern")
    assert put_together(base, body)["content"] == [call]
    named = post({**body, "tool_choice": {"type": "tool", "name": "get_weather"}})
    assert named["content"][0]["name"] == "get_weather"
    result = {"type": "tool_result", "tool_use_id": call["id"], "content": [{"type": "text", "text": "21 °C"}]}
    turn = {"role": "user", "content": [result, {"type": "text", "text": "Well?"}]}
    going_on = {"messages": [*HELLO, {"role": "assistant", "content": [call]}, turn], "tools": [TOOL]}
    after = post({**going_on, "tool_choice": {"type": "none"}})
    assert after["content"][0]["type"] == "text"
    arguments = json.dumps(call["input"])
    chat = [
        *HELLO,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": call["id"], "type": "function", "function": {"name": call["name"], "arguments": arguments}}
            ],
        },
        {"role": "tool", "tool_call_id": call["id"], "content": "21 °C"},
        {"role": "user", "content": "Well?"},
    ]
    same = post({"messages": chat, "tool_choice": "none"}, path="/v1/chat/completions")
    assert after["content"][0]["text"] == same["choices"][0]["message"]["content"]


def test_an_answer_may_be_bound_to_a_schema(post: Post) -> None:
    form = {"format": {"type": "json_schema", "schema": {**SCHEMA, "additionalProperties": False}}}
    how = {"messages": HELLO, "max_tokens": 200, "temperature": 1.5, "seed": 7}
    told = post({**how, "output_config": form})
    assert json.loads(told["content"][0]["text"])["city"] in ("Zürich", "Bern")


@pytest.mark.parametrize(
    ("more", "place", "told"),
    [
        ({"max_tokens": None}, "max_tokens", "is missing"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"messages": []}, "messages", "are missing"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0]", "has the role"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages[0].content[0]", "'image' is not"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "list of blocks"),
        ({"messages": [{"role": "user", "content": "a " * 2500}]}, "messages", "The prompt has"),
        ({"system": [{"type": "image"}]}, "system[0]", "is not served"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0]", "caller's own"),
        ({"tools": [{"input_schema": {}}]}, "tools.0.name", "Field required"),
        ({"tool_choice": {"type": "some"}}, "tool_choice", "has a type"),
        ({"tool_choice": {"type": "any"}}, "tool_choice", "no tools to call"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking", "knows no thought"),
        ({"thinking": {"type": "enabled"}}, "thinking", 'send {"type": "disabled"}'),
        ({"thinking": {"type": "often"}}, "thinking", "has a type"),
        ({"thinking": {"type": "enabled"}, "output_config": {"effort": "huge"}}, "output_config.effort", "'xhigh'"),
        ({"num_return_sequences": 2, "do_sample": True}, "num_return_sequences", "is not served"),
        ({"logprobs": True}, "logprobs", "is not served"),
        ({"messages": [*HELLO, call(name=None)]}, "messages[1].content[0].name", 'no text "name"'),
        ({"messages": [*HELLO, call(input="Bern")]}, "messages[1].content[0].input", "an object"),
        (
            {"messages": [{"role": "user", "content": [{"type": "tool_result", "content": "sun"}]}]},
            "messages[0].content[0].tool_use_id",
            'no text "tool_use_id"',
        ),
        ({"output_config": {"format": {"type": "yaml"}}}, "output_config.format", "json_schema"),
        ({"stop_sequences": [""]}, "stop_sequences.0", "at least 1 character"),
        ({"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}}, "context_management", "as it is"),
        ({"mcp_servers": [{}]}, "mcp_servers", "is not served"),
        ({"colour": "red"}, "colour", "Unknown parameter"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_is_not_served_is_refused_in_the_clients_shape(
    post: Post, more: dict[str, Any], place: str, told: str
) -> None:
    refused = post({"messages": HELLO, **more}, 400)
    assert (refused["type"], refused["error"]["type"]) == ("error", "invalid_request_error")
    assert refused["error"]["code"] in ("invalid_parameter", "invalid_input", "prompt_too_long", "text_too_long")
    assert refused["error"]["message"].startswith(f"{place}: ")
    assert told in refused["error"]["message"]


def test_marks_are_passed_over_and_others_are_refused_in_shape(post: Post) -> None:
    marks: dict[str, Any] = {
        "metadata": {"user_id": "a"},
        "service_tier": "auto",
        "thinking": {"type": "disabled"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "output_config": {"effort": "high"},
        "top_k": 1,
    }
    assert post({"messages": HELLO, **marks})["content"] == post({"messages": HELLO})["content"]
    assert post({"messages": HELLO, "model": "other"}, 404)["error"]["type"] == "not_found_error"
    assert post({"messages": HELLO}, 400, server="gpt2")["error"]["type"] == "invalid_request_error"
    assert post({}, 404, "/v1/messages/batches")["error"]["type"] == "not_found_error"


def test_the_official_client(base: Base) -> None:
    anthropic = pytest.importorskip("anthropic")
    with anthropic.Anthropic(base_url=base("tools"), api_key="none", max_retries=0, timeout=60) as client:
        how: Any = {
            "model": "tools",
            "max_tokens": 200,
            "messages": HELLO,
            "tools": [TOOL],
            "tool_choice": {"type": "any"},
        }
        whole = client.messages.create(**how)
        with client.messages.stream(**how) as stream:
            assert stream.get_final_message().content == whole.content
        counted = client.messages.count_tokens(model="tools", messages=HELLO)
        assert (
            counted.input_tokens
            == client.messages.create(**{**how, "tools": [], "tool_choice": {"type": "none"}}).usage.input_tokens
        )
        with pytest.raises(anthropic.NotFoundError):
            client.messages.create(model="other", max_tokens=2, messages=HELLO)
