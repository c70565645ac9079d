"""Requests of /score as OpenAI's interface takes them, and its answers as /score gives them."""

import json
from collections.abc import Callable
from typing import Any

#: Parameters by the names that OpenAI's interface, or vLLM's additions to it, have for them: of texts, and of vectors.
_NAMES = {
    "max_new_tokens": "max_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "repetition_penalty": "repetition_penalty",
    "seed": "seed",
    "stop": "stop",
}
_NAMES_OF_VECTORS = {"dimensions": "dimensions"}
_OWN = {"do_sample", "return_full_text"}  # parameters that are said otherwise there
_NEUTRAL = {"top_k": -1, "repetition_penalty": 1.0}  # values that say what leaving them out says


class Untranslatable(Exception):
    """Request that has no form in OpenAI's interface."""


class OpenAIForm:
    """Form of one task's requests and answers; a task without one translates nothing."""

    def __init__(self, task: str) -> None:
        forms: dict[str, tuple[str, Callable[[Any], dict[str, Any]], Callable[[Any, Any], Any]]] = {
            "text-generation": ("completions", _prompt, _continued),
            "conversational": ("chat/completions", _messages, _replied),
            "sentence-embeddings": ("embeddings", _input, _vector),
        }
        self._form = forms.get(task)

    def request(self, raw: str) -> tuple[str, dict[str, Any]]:
        """Path and body of a request. Raises Untranslatable for one that cannot be said there."""
        body = _read(raw)
        if self._form is None:
            raise Untranslatable
        path, write, _ = self._form
        translated = _translated_of_vectors if path == "embeddings" else _translated
        return path, {**write(body["inputs"]), **translated(body.get("parameters") or {})}

    def answer(self, raw: str, reply: Any) -> bytes:
        """Answer in the form that /score has for the same request."""
        assert self._form is not None
        body = _read(raw)
        return json.dumps(self._form[2](body, reply)).encode()


def _read(raw: str) -> dict[str, Any]:
    try:
        body = json.loads(raw)
    except ValueError:
        raise Untranslatable from None
    if not isinstance(body, dict) or not {"inputs"} <= set(body) <= {"inputs", "parameters"}:
        raise Untranslatable
    return body


def _translated(parameters: dict[str, Any]) -> dict[str, Any]:
    if set(parameters) - set(_NAMES) - _OWN:
        raise Untranslatable
    told = {_NAMES[n]: v for n, v in parameters.items() if n in _NAMES and _NEUTRAL.get(n) != v}
    if parameters.get("do_sample") is not True and parameters.get("temperature") is None:
        told["temperature"] = 0  # /score takes the likeliest token unless told to sample; OpenAI's interface samples
    return told


def _translated_of_vectors(parameters: dict[str, Any]) -> dict[str, Any]:
    if set(parameters) - set(_NAMES_OF_VECTORS):
        raise Untranslatable
    return {_NAMES_OF_VECTORS[name]: value for name, value in parameters.items()}


def _prompt(inputs: Any) -> dict[str, Any]:
    if not isinstance(inputs, str):
        raise Untranslatable
    return {"prompt": inputs}


def _messages(inputs: Any) -> dict[str, Any]:
    if not isinstance(inputs, list) or not all(isinstance(one, dict) and "role" in one for one in inputs):
        raise Untranslatable
    return {"messages": inputs}


def _input(inputs: Any) -> dict[str, Any]:
    if not isinstance(inputs, str):
        raise Untranslatable
    return {"input": inputs}


def _full(body: dict[str, Any]) -> bool:
    return bool((body.get("parameters") or {}).get("return_full_text", True))


def _continued(body: dict[str, Any], reply: Any) -> Any:
    before = body["inputs"] if _full(body) else ""
    return [{"generated_text": before + choice["text"]} for choice in reply["choices"]]


def _replied(body: dict[str, Any], reply: Any) -> Any:
    texts = [choice["message"].get("content") or "" for choice in reply["choices"]]
    if not _full(body):
        return [{"generated_text": text} for text in texts]
    return [{"generated_text": [*body["inputs"], {"role": "assistant", "content": text}]} for text in texts]


def _vector(body: dict[str, Any], reply: Any) -> Any:
    return reply["data"][0]["embedding"]  # of one text, as every translated request has
