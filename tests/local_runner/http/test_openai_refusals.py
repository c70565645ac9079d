"""What OpenAI's interface refuses, in its own error form and with the caller's field, by the official client."""

from collections.abc import Callable
from typing import Any

import openai
import pytest

Client = Callable[[str], openai.OpenAI]
HELLO: Any = [{"role": "user", "content": "the quick brown fox"}]
TOOLS = [{"type": "function", "function": {"name": "now"}}]
REFUSED: list[tuple[str, dict[str, Any], str, str | None]] = [
    ("gpt2", {"prompt": [1, "a"]}, "The prompt is no text, no token ids", "prompt"),
    ("gpt2", {"prompt": [[1], []]}, "The prompt is no text, no token ids", "prompt"),
    ("gpt2", {"prompt": [1, -2]}, "greater than or equal to 0", "prompt[0][1]"),
    ("gpt2", {"prompt": [1, 1 << 30]}, "The model has no token 1073741824", "prompt[0]"),
    ("gpt2", {"prompt": [1, 2], "echo": True, "stream": True}, "A stream repeats texts", "echo"),
    ("gpt2", {}, "The prompt is no text", "prompt"),
    ("gpt2", {"prompt": "a", "temperature": 900}, "less than or equal to 100", "temperature"),
    ("gpt2", {"prompt": "a", "logprobs": 21}, "logprobs is a number from 0 to 20.", "logprobs"),
    ("gpt2", {"prompt": "a", "logprobs": 1, "echo": True, "stream": True}, "are not streamed.", "echo"),
    ("gpt2", {"prompt": "a", "prompt_logprobs": 1, "stream": True}, "are not streamed.", "prompt_logprobs"),
    ("gpt2", {"prompt": "a", "prompt_logprobs": 1, "echo": True, "logprobs": 1}, "already", "prompt_logprobs"),
    (
        "gpt2",
        {"prompt": "a b", "truncate_prompt_tokens": 1, "echo": True, "logprobs": 1},
        "A prompt that is cut",
        "truncate_prompt_tokens",
    ),
    ("gpt2", {"prompt": "a", "min_tokens": 30, "max_tokens": 3}, "min_tokens is 30", "min_tokens"),
    ("gpt2", {"prompt": "a", "best_of": 3}, "best_of is not served here.", "best_of"),
    ("chat", {"messages": HELLO, "logit_bias": {"77777": 1}}, "The model has no token 77777.", "logit_bias"),
    (
        "chat",
        {"messages": HELLO, "continue_final_message": True, "add_generation_prompt": True},
        "has no answer behind it",
        "continue_final_message",
    ),
    ("chat", {"messages": HELLO, "top_logprobs": 2}, "top_logprobs needs logprobs.", "top_logprobs"),
    ("chat", {"messages": HELLO, "logprobs": "yes"}, '"logprobs" must be true or false.', "logprobs"),
    ("gpt2", {"prompt": "a", "presence_penalty": 2.5}, "less than or equal to 2", "presence_penalty"),
    ("gpt2", {"prompt": "a", "best_off": 1}, "Unknown parameter 'best_off'.", "best_off"),
    ("gpt2", {"prompt": "a", "max_tokens": 10**6}, "max_tokens is 1000000, but", "max_tokens"),
    ("gpt2", {"prompt": "a", "max_completion_tokens": 10**6}, "max_completion_tokens is", "max_completion_tokens"),
    ("gpt2", {"prompt": "a", "max_tokens": 2, "max_completion_tokens": 3}, "are the same", "max_completion_tokens"),
    ("gpt2", {"prompt": "a", "n": 40}, "less than or equal to 16", "n"),
    ("gpt2", {"prompt": "a", "return_full_text": True}, "return_full_text is not served here.", "return_full_text"),
    ("gpt2", {"prompt": "a", "echo": "yes"}, '"echo" must be true or false.', "echo"),
    ("gpt2", {"prompt": "a", "temperature": []}, "Input should be", "temperature"),
    ("gpt2", {"prompt": "a", "top_logprobs": 2}, "Unknown parameter 'top_logprobs'.", "top_logprobs"),
    ("gpt2", {"prompt": "a", "messages": HELLO}, "Unknown parameter 'messages'.", "messages"),
    ("gpt2", {"prompt": "a", "best_of": 2}, "best_of is not served here.", "best_of"),
    ("gpt2", {"prompt": "a", "stream": 1}, '"stream" must be true or false.', "stream"),
    ("gpt2", {"prompt": "a", "stream_options": {"include_usage": True}}, "for a stream", "stream_options"),
    (
        "gpt2",
        {"prompt": "a", "stream": True, "stream_options": {"include_obfuscation": True}},
        "is not served",
        "stream_options.include_obfuscation",
    ),
    ("gpt2", {"prompt": ["a", "b" * 4000]}, "The prompt has", "prompt[1]"),
    ("gpt2", {"prompt": "b" * 4000}, "The prompt has", "prompt"),
    ("gpt2", {"prompt": "a", "stream": "yes"}, '"stream" must be true or false.', "stream"),
    ("gpt2", {"prompt": ["a", "b"], "stream": True}, "A stream answers one input.", "prompt"),
    ("chat", {"messages": []}, "The messages are missing.", "messages"),
    ("chat", {"messages": ["a"]}, "A message is a JSON object.", "messages[0]"),
    ("chat", {"messages": [{"role": "user"}]}, 'A message needs the texts "role" and "content".', "messages[0]"),
    ("chat", {"messages": [{"role": "robot", "content": "a"}]}, "Input should be", "messages[0].role"),
    (
        "chat",
        {"messages": [*HELLO, {"role": "assistant", "content": "a", "audio": {"id": "x"}}]},
        "is not served here.",
        "messages[1].audio",
    ),
    ("chat", {"messages": [*HELLO, {"role": "assistant", "content": None, "tool_calls": [1]}]}, "Input", None),
    ("chat", {"messages": HELLO, "echo": True}, "echo is not served here.", "echo"),
    ("chat", {"messages": HELLO, "stream": True, "reasoning_effort": "low"}, "knows no thought", "reasoning_effort"),
    ("chat", {"messages": HELLO, "skip_special_tokens": False}, "is not served here.", "skip_special_tokens"),
    ("gpt2", {"prompt": "a", "reasoning_effort": "low"}, "is not served here.", "reasoning_effort"),
    ("chat", {"messages": HELLO, "logprobs": 1}, '"logprobs" must be true or false.', "logprobs"),
    ("chat", {"messages": [{"role": "user", "content": "a " * 999}]}, "The prompt has", "messages"),
    ("chat", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "Only parts of text", None),
    ("chat", {"messages": HELLO, "tools": [{"type": "function"}]}, "Field required", "tools.0.function"),
    ("chat", {"messages": HELLO, "tools": TOOLS}, "template takes no tools", "tools"),
    ("chat", {"messages": HELLO, "tool_choice": {"type": "custom"}}, "Input should be 'function'", "tool_choice.type"),
    ("chat", {"messages": HELLO, "tool_choice": "required"}, "no tools to call", "tool_choice"),
    ("gpt2", {"prompt": "a", "tools": TOOLS}, "tools is not served here.", "tools"),
    ("chat", {"messages": HELLO, "response_format": {"type": "yaml"}}, "Input should be", "response_format.type"),
    (
        "chat",
        {
            "messages": HELLO,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "a", "strict": True, "schema": {"properties": {"b": {"not": {}}}}},
            },
        },
        'Unimplemented keys: ["not"]',
        "response_format.json_schema.schema.properties.b",
    ),
    ("chat", {"messages": HELLO, "guided_regex": "a(b"}, "unclosed group", "guided_regex"),
    ("gpt2", {"prompt": "a", "guided_regex": "a", "guided_choice": ["a"]}, "both bind", "guided_choice"),
    ("gpt2", {"prompt": "a", "guided_regex": "a", "num_beams": 2}, "beams cannot be bound", "guided_regex"),
    ("embed", {"input": ""}, "at least 1 character", "input"),
    ("embed", {"input": ["a", ""]}, "at least 1 character", "input[1]"),
    ("embed", {"input": "a", "stream": True}, "Unknown parameter 'stream'.", "stream"),
    ("embed", {"input": "a", "n": 2}, "Unknown parameter 'n", "n"),
    ("embed", {"input": [1, "a"]}, "The input must be a text", "input"),
    ("embed", {"input": [[]]}, "The input must be a text", "input"),
    ("embed", {"input": [10**6]}, "The model has no token 1000000", "input[0]"),
    ("embed", {"input": ["a"] * 2049}, "There are 2,049 inputs; at most 2,048", "input"),
    ("embed", {"input": "a", "dimensions": 33}, "The model's vectors have 32 numbers.", "dimensions"),
    ("embed", {"input": "a", "dimensions": "8"}, "valid integer", "dimensions"),
    ("embed", {"input": "a", "encoding_format": "hex"}, "float or base64", "encoding_format"),
    ("embed", {"input": "a", "prompt_name": "title"}, "no prompt 'title'", "prompt_name"),
    ("embed", {"input": "word " * 200}, "the model takes 128", "input"),
]
PATHS = {"gpt2": "completions", "chat": "chat/completions", "embed": "embeddings"}


@pytest.mark.parametrize(("name", "body", "says", "place"), REFUSED)
def test_what_cannot_be_answered_is_a_bad_request(
    client: Client, name: str, body: dict[str, Any], says: str, place: str | None
) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client(name).post(f"/{PATHS[name]}", cast_to=object, body=body)
    told: Any = raised.value.body
    assert says in told["message"]
    assert told["type"] == "invalid_request_error"
    assert place is None or told["param"] == place
    assert told["param"]
