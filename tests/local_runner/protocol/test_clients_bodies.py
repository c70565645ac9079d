"""Bodies of OpenAI's and Hugging Face's clients with any JSON in any field: read as canonical ones, or refused."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from local_runner.http.openapi_bodies import BODIES
from local_runner.http.responses_events import begun
from local_runner.protocol import messages_requests, openai_requests, responses_requests, tgi_requests
from scoring.errors import MiiAzureError
from scoring.host_api import Deployment
from tests.scenarios.fuzz.payloads import TEXTS, VALUES

Canonical = Callable[[dict[str, Any]], dict[str, Any]]
CHAT, TEXT = Deployment("chat", "conversational"), Deployment("text", "text-generation")
DOORS: dict[str, Canonical] = {
    "/v1/completions": lambda sent: openai_requests.completion(sent, TEXT),
    "/v1/chat/completions": lambda sent: openai_requests.chat(sent, CHAT),
    "/v1/responses": lambda sent: responses_requests.canonical(sent, CHAT),
    "/v1/messages": lambda sent: messages_requests.canonical(sent, CHAT),
    "/generate": lambda sent: tgi_requests.canonical(sent, TEXT, stream=bool(sent.get("stream")), full=False),
}
#: Fields whose values have fields of their own.
INNER = {
    "input": ("type", "role", "content", "call_id", "name", "arguments", "output", "summary"),
    "messages": ("role", "content", "tool_calls", "name"),
    "tools": ("type", "name", "parameters", "strict"),
    "system": ("type", "text"),
    "thinking": ("type", "budget_tokens"),
    "output_config": ("effort", "format"),
    "text": ("format", "verbosity", "type"),
    "tool_choice": ("type", "name"),
    "reasoning": ("effort", "summary"),
    "response_format": ("type", "value", "json_schema"),
    "stream_options": ("include_usage",),
    "parameters": (
        "details",
        "grammar",
        "truncate",
        "watermark",
        "best_of",
        "stop",
        "decoder_input_details",
        "top_n_tokens",
    ),
}
WORDS = st.sampled_from(
    ["message", "function", "function_call", "function_call_output", "reasoning", "user", "json", "json_schema", "none"]
)


def values(field: str) -> st.SearchStrategy[Any]:
    """Any JSON, or objects of a field's own fields, and lists of them."""
    if field not in INNER:
        return VALUES
    parts = st.fixed_dictionaries({}, optional=dict.fromkeys(INNER[field], WORDS | VALUES))
    content = st.lists(st.fixed_dictionaries({"type": st.just("input_text"), "text": TEXTS}), max_size=2)
    nested = st.fixed_dictionaries({}, optional=dict.fromkeys(INNER[field], WORDS | TEXTS | content | parts))
    return st.one_of(VALUES, parts, nested, st.lists(nested, max_size=3))


@pytest.mark.parametrize("path", DOORS)
def test_any_body_is_read_or_refused(path: str) -> None:
    fields = [*BODIES[path]["properties"], "store", "previous_response_id", "best_of", "unknown"]
    good: dict[str, Any] = {"prompt": "a", "messages": [{"role": "user", "content": "a"}], "input": "a", "inputs": "a"}
    good["max_tokens"] = 5
    required = {name: st.just(good[name]) | values(name) for name in BODIES[path]["required"]}
    optional = {name: values(name) for name in fields if name not in required}
    told = []

    @settings(max_examples=250, deadline=None)
    @given(
        st.fixed_dictionaries(required),
        st.dictionaries(st.sampled_from(sorted(optional)), st.none(), max_size=3),
        st.data(),
    )
    def check(sent: dict[str, Any], chosen: dict[str, None], data: st.DataObject) -> None:
        body = {**sent, **{name: data.draw(optional[name]) for name in chosen}}
        try:
            asked = DOORS[path](body)
        except MiiAzureError as error:
            assert error.http_status in (400, 404), error
            return
        told.append(asked)
        assert isinstance(asked["parameters"], dict)
        if path == "/v1/responses":
            begun(body, "chat")

    check()
    assert told  # some were read
