"""Calls of tools in several forms, of a generated and served bundle over real HTTP: streamed as whole, and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import openai
import pytest

from local_runner.process.launch import LOOPBACK, Runner
from tests.local_runner.http.test_openai_tools import HELLO, TOOL, GetWeather

NAMED: Any = {"type": "function", "function": {"name": "get_weather"}}


@pytest.mark.parametrize("form", ["kimi_k2", "mistral_args", "deepseek_v31"])
def test_calls_of_a_form_are_made_streamed_and_taken_back(form: str, real: Callable[[str], Runner]) -> None:
    name = f"tools-{form.replace('_', '-')}"
    url = f"http://{LOOPBACK}:{real(name).http_port}/v1"
    asked: Any = {"model": name, "messages": HELLO, "tools": [TOOL], "temperature": 1.5, "seed": 7}
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60) as client:
        told = client.chat.completions.parse(tool_choice=NAMED, max_tokens=400, **asked).choices[0].message
        [call] = told.tool_calls or []
        assert isinstance(call.function.parsed_arguments, GetWeather)
        assert call.id.startswith("functions.get_weather:") == (form == "kimi_k2")
        stream = client.chat.completions.create(tool_choice=NAMED, max_tokens=400, stream=True, **asked)
        pieces = [piece for chunk in stream for piece in chunk.choices[0].delta.tool_calls or []]
        assert pieces[0].id == call.id
        arguments = [piece.function.arguments or "" for piece in pieces if piece.function]
        assert ("".join(arguments), len(pieces) > 3) == (call.function.arguments, True)
        answer = {"role": "tool", "tool_call_id": call.id, "content": "21 °C"}
        asked["messages"] = [*HELLO, told, answer]
        assert client.chat.completions.create(max_tokens=4, **asked).choices[0].finish_reason
