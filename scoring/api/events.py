"""Server-sent events as bytes."""

from typing import Any

import pydantic_core

from scoring.strict_json.body import dumps

#: `{"token": {"text": ...}}`, `{"answer": ...}` or `{"error": ...}`, each with further fields.
Event = dict[str, Any]


def encode(event: Event) -> bytes:
    """Encode an event; `[DONE]` follows an answer."""
    if len(event) == 1 and len(token := event.get("token", ())) == 1:  # nearly every event: only text
        return b'data: {"token":{"text":' + pydantic_core.to_json(token["text"]) + b"}}\n\n"
    data = b"data: " + dumps(event) + b"\n\n"
    return data + b"data: [DONE]\n\n" if "answer" in event else data
