"""OpenAPI descriptions of refusals, and of requests that the routes read themselves."""

from typing import Any

from local_runner.protocol import (
    messages_requests,
    openai_requests,
    responses_requests,
    retrieval_requests,
    tgi_requests,
)
from local_runner.protocol.oip import INPUTS

_READERS = (openai_requests, responses_requests, messages_requests, retrieval_requests)
_TEXT = {"type": "string"}
_TEXTS = {"anyOf": [_TEXT, {"type": "array", "items": _TEXT, "minItems": 1}]}
_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
_TEXTS_OR_IDS = {"anyOf": [_TEXT, _IDS, {"type": "array", "items": {"anyOf": [_TEXT, _IDS]}, "minItems": 1}]}
_GENERATION: dict[str, Any] = {
    "model": _TEXT,
    "stream": {"type": "boolean"},
    "stream_options": {
        "type": "object",
        "properties": {"include_usage": {"type": "boolean"}, "continuous_usage_stats": {"type": "boolean"}},
    },
    "max_tokens": {"type": "integer", "minimum": 1},
    "n": {"type": "integer", "minimum": 1, "maximum": 16},
    "temperature": {"type": "number", "minimum": 0, "maximum": 100},
    "top_p": {"type": "number", "minimum": 0, "maximum": 1},
    "seed": {"type": "integer", "minimum": -1},
    "stop": _TEXTS,
    "stop_token_ids": {"type": "array", "items": {"type": "integer", "minimum": 0}, "maxItems": 16},
    "min_tokens": {"type": "integer", "minimum": 0},
    "ignore_eos": {"type": "boolean"},
    "top_k": {"type": "integer", "minimum": -1},
    "min_p": {"type": "number", "minimum": 0, "maximum": 1},
    "repetition_penalty": {"type": "number", "minimum": 0.01, "maximum": 100},
    "presence_penalty": {"type": "number", "minimum": -2, "maximum": 2},
    "frequency_penalty": {"type": "number", "minimum": -2, "maximum": 2},
    "logit_bias": {"type": "object", "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100}},
    "priority": {"type": "integer"},
    "prompt_logprobs": {"type": "integer", "minimum": 0, "maximum": 20},
    "truncate_prompt_tokens": {"type": "integer", "minimum": -1},
    "include_stop_str_in_output": {"type": "boolean"},
    "allowed_token_ids": {"type": "array", "items": {"type": "integer", "minimum": 0}, "maxItems": 1024},
    "bad_words": {"type": "array", "items": _TEXT, "maxItems": 128},
    "return_token_ids": {"type": "boolean"},
    "cache_salt": {"type": "string"},
    "user": _TEXT,
    "response_format": {
        "type": "object",
        "properties": {
            "type": {"type": "string", "enum": ["text", "json_object", "json_schema"]},
            "json_schema": {
                "type": "object",
                "properties": {"name": _TEXT, "schema": {"type": "object"}, "strict": {"type": "boolean"}},
            },
        },
        "required": ["type"],
    },
    "structured_outputs": {"type": "object"},
    "guided_json": {"anyOf": [{"type": "object"}, _TEXT]},
    "guided_regex": _TEXT,
    "guided_choice": {"type": "array", "items": _TEXT, "minItems": 1},
    "guided_grammar": _TEXT,
}


def _object(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required}


_MESSAGE = _object(
    ["role"],
    role={"type": "string", "enum": ["system", "developer", "user", "assistant", "tool"]},
    content={
        "anyOf": [
            _TEXT,
            {"type": "array", "items": _object(["type", "text"], type={"const": "text"}, text=_TEXT)},
            {"type": "null"},
        ]
    },
    name=_TEXT,
    tool_calls={"type": "array", "items": {"type": "object"}},
    tool_call_id=_TEXT,
    reasoning_content=_TEXT,
)
_TOOL = _object(
    ["type", "function"],
    type={"const": "function"},
    function=_object(["name"], name=_TEXT, description=_TEXT, parameters={"type": "object"}),
)
_TOOLS: dict[str, Any] = {
    "tools": {"type": "array", "items": _TOOL},
    "tool_choice": {"anyOf": [{"type": "string", "enum": ["none", "auto", "required"]}, {"type": "object"}]},
    "parallel_tool_calls": {"type": "boolean"},
    "chat_template_kwargs": {"type": "object"},
}
_TURN = _object(
    ["role", "content"],
    role={"type": "string", "enum": ["user", "assistant"]},
    content={"anyOf": [_TEXT, {"type": "array", "items": _object(["type"], type=_TEXT), "minItems": 1}]},
)
#: Of Anthropic's messages.
_TURNS: dict[str, Any] = {
    "model": _TEXT,
    "messages": {"type": "array", "items": _TURN, "minItems": 1},
    "system": {"anyOf": [_TEXT, {"type": "array", "items": _object(["type", "text"], type=_TEXT, text=_TEXT)}]},
    "stop_sequences": {"type": "array", "items": {**_TEXT, "minLength": 1}, "maxItems": 16},
    "stream": {"type": "boolean"},
    "temperature": _GENERATION["temperature"],
    "top_p": _GENERATION["top_p"],
    "top_k": _GENERATION["top_k"],
    "tools": {
        "type": "array",
        "items": _object(["name", "input_schema"], name=_TEXT, description=_TEXT, input_schema={"type": "object"}),
    },
    "tool_choice": _object(["type"], type={"type": "string", "enum": ["auto", "any", "tool", "none"]}, name=_TEXT),
    "thinking": _object(["type"], type={"type": "string", "enum": ["enabled", "adaptive", "disabled"]}),
    "output_config": {"type": "object", "properties": {"effort": _TEXT, "format": {"type": "object"}}},
}
_CONTINUED = _object(
    ["inputs"],
    inputs=_TEXT,
    parameters={
        "type": "object",
        "properties": {
            "details": {"type": "boolean"},
            "return_full_text": {"type": "boolean"},
            "max_new_tokens": {"type": "integer", "minimum": 1},
            "stop": {"type": "array", "items": _TEXT, "maxItems": 16},
            "grammar": _object(
                ["type", "value"], type={"type": "string", "enum": ["json", "regex", "json_schema"]}, value={}
            ),
        },
    },
)
_TENSOR = _object(
    ["name", "datatype", "shape", "data"],
    name={"type": "string", "enum": [name for name, _ in INPUTS]},
    datatype={"const": "BYTES"},
    shape={"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 1, "maxItems": 1},
    data={"type": "array", "items": _TEXT, "minItems": 1},
)
#: JSON schemas of the bodies, by path.
BODIES: dict[str, dict[str, Any]] = {
    "/v2/models/{model}/infer": _object(
        ["inputs"],
        id=_TEXT,
        inputs={"type": "array", "items": _TENSOR, "minItems": 1, "maxItems": 1},
        outputs={"type": "array", "items": _object(["name"], name=_TEXT)},
        parameters={"type": "object"},
    ),
    "/v1/completions": _object(
        ["prompt"],
        prompt=_TEXTS_OR_IDS,
        echo={"type": "boolean"},
        logprobs={"type": "integer", "minimum": 0, "maximum": 20},
        **_GENERATION,
    ),
    "/v1/chat/completions": _object(
        ["messages"],
        messages={"type": "array", "items": _MESSAGE, "minItems": 1},
        logprobs={"type": "boolean"},
        top_logprobs={"type": "integer", "minimum": 0, "maximum": 20},
        max_completion_tokens={"type": "integer", "minimum": 1},
        prediction={"type": "object"},
        continue_final_message={"type": "boolean"},
        add_generation_prompt={"type": "boolean"},
        reasoning_effort=_TEXT,
        **_TOOLS,
        **_GENERATION,
    ),
    "/v1/responses": _object(
        ["input"],
        model=_TEXT,
        input={"anyOf": [{**_TEXT, "minLength": 1}, {"type": "array", "items": {"type": "object"}, "minItems": 1}]},
        instructions=_TEXT,
        max_output_tokens={"type": "integer", "minimum": 1},
        stream={"type": "boolean"},
        temperature=_GENERATION["temperature"],
        top_p=_GENERATION["top_p"],
        top_logprobs={"type": "integer", "minimum": 0, "maximum": 20},
        include={"type": "array", "items": {"enum": [responses_requests.LOGPROBS, responses_requests.ENCRYPTED]}},
        text={"type": "object", "properties": {"format": {"type": "object"}}},
        tools={
            "type": "array",
            "items": _object(
                ["type", "name"], type={"const": "function"}, name=_TEXT, parameters={"type": ["object", "null"]}
            ),
        },
        tool_choice=_TOOLS["tool_choice"],
        parallel_tool_calls={"type": "boolean"},
        reasoning={"type": "object", "properties": {"effort": _TEXT, "summary": {"enum": ["auto", None]}}},
        store={"const": False},
        metadata={"type": "object"},
    ),
    "/v1/messages": _object(["messages", "max_tokens"], **_TURNS, max_tokens={"type": "integer", "minimum": 1}),
    "/v1/messages/count_tokens": _object(["messages"], **_TURNS),
    "/generate": _CONTINUED,
    "/generate_stream": _CONTINUED,
    "/embed": _object(["inputs"], inputs=_TEXTS_OR_IDS, truncate={"type": "boolean"}, normalize={"type": "boolean"}),
    "/embed_sparse": _object(["inputs"], inputs=_TEXTS_OR_IDS, truncate={"type": "boolean"}),
    "/predict": _object(["inputs"], inputs={}, truncate={"type": "boolean"}, raw_scores={"type": "boolean"}),
    "/similarity": _object(["inputs"], inputs=_object(["source_sentence", "sentences"]), parameters={"type": "object"}),
    "/rerank": _object(
        ["query", "texts"],
        query=_TEXT,
        texts={"type": "array", "items": _TEXT, "minItems": 1},
        truncate={"type": "boolean"},
        raw_scores={"type": "boolean"},
        return_text={"type": "boolean"},
    ),
    "/v1/embeddings": _object(
        ["input"],
        model=_TEXT,
        input=_TEXTS_OR_IDS,
        truncate_prompt_tokens={"type": "integer", "enum": [-1]},
        encoding_format={"type": "string", "enum": ["float", "base64"]},
        dimensions={"type": "integer", "minimum": 1},
        truncate={"type": "boolean"},
        prompt_name=_TEXT,
        prompt={"type": "string"},
        normalize={"type": "boolean"},
        user=_TEXT,
    ),
    "/v1/rerank": _object(
        ["query", "documents"],
        model=_TEXT,
        query=_TEXT,
        documents={
            "type": "array",
            "items": {"anyOf": [{"type": "string"}, _object(["text"], text={"type": "string"})]},
            "minItems": 1,
            "maxItems": 2048,
        },
        top_n={"type": "integer", "minimum": 1},
        return_documents={"type": "boolean"},
        max_tokens_per_doc={"type": "integer", "minimum": 1},
        truncation={"type": "boolean"},
        raw_scores={"type": "boolean"},
        instruction={"type": "string"},
        user=_TEXT,
    ),
    "/v1/score": _object(
        ["text_1", "text_2"],
        model=_TEXT,
        text_1=_TEXTS,
        text_2=_TEXTS,
        truncate_prompt_tokens={"type": "integer", "enum": [-1]},
        raw_scores={"type": "boolean"},
        instruction={"type": "string"},
        user=_TEXT,
    ),
    "/v1/load_lora_adapter": _object(
        ["lora_name", "lora_path"], lora_name=_TEXT, lora_path=_TEXT, load_inplace={"type": "boolean"}
    ),
    "/v1/unload_lora_adapter": _object(["lora_name"], lora_name=_TEXT),
    "/v1/tokenize": _object(
        [],
        model=_TEXT,
        prompt={"type": "string"},
        messages={"type": "array", "items": _MESSAGE, "minItems": 1},
        add_special_tokens={"type": "boolean"},
        add_generation_prompt={"type": "boolean"},
        continue_final_message={"type": "boolean"},
        return_token_strs={"type": "boolean"},
        tools=_TOOLS["tools"],
        chat_template_kwargs=_TOOLS["chat_template_kwargs"],
    ),
    "/v1/detokenize": _object(
        ["tokens"],
        model=_TEXT,
        tokens={"type": "array", "items": {"type": "integer", "minimum": 0}, "maxItems": 131072},
    ),
}
_SPOKEN: dict[str, Any] = {
    "file": {"type": "string", "contentMediaType": "application/octet-stream"},
    "model": _TEXT,
    "prompt": _TEXT,
    "response_format": {"type": "string", "enum": ["json", "text", "srt", "verbose_json", "vtt"]},
    "temperature": {"type": "number", "minimum": 0, "maximum": 1},
    "seed": {"type": "integer"},
    "max_new_tokens": {"type": "integer", "minimum": 1},
    "timestamp_granularities[]": {"type": "array", "items": {"type": "string", "enum": ["segment", "word"]}},
    "stream": {"type": "boolean"},
}
#: Bodies that are forms, with a file.
FORMS = {
    "/v1/audio/transcriptions": _object(["file"], **_SPOKEN, language=_TEXT),
    "/v1/audio/translations": _object(["file"], **_SPOKEN, language=_TEXT),
}
_REFUSALS = {
    "400": "The request is wrong; the message says where.",
    "404": "Another model's name.",
    "413": "The request is too large.",
    "429": "The queue is full; Retry-After says when to come back.",
    "503": "The model is loading, or the service is stopping.",
    "504": "The request was not answered in time.",
}


def describe(document: dict[str, Any]) -> dict[str, Any]:
    """Add the bodies to `document`, and the real refusals in place of the framework's own 422, which never occurs."""
    for path, operations in document["paths"].items():
        for operation in operations.values():
            operation["responses"].pop("422", None)
            if path in BODIES or path in FORMS:
                content = _json(BODIES[path]) if path in BODIES else {"multipart/form-data": {"schema": FORMS[path]}}
                operation["requestBody"] = {"required": True, "content": content}
                told = {status: {"description": text, "content": _json(_ERROR)} for status, text in _REFUSALS.items()}
                operation["responses"] |= told
    schemas = document.get("components", {}).get("schemas", {})
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    return document


def add_parameters(document: dict[str, Any], task: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """Add to the bodies that hand fields on to the task what they do not have of its parameters' schemas."""
    for path, body in BODIES.items():
        more = {name: parameters[name] for read in _READERS for name in read.handed_on(path, task, parameters)}
        whole = {**body, "properties": more | body["properties"]}
        if body is _CONTINUED and task == tgi_requests.TASK:
            own = body["properties"]["parameters"]
            nested = {**own, "properties": parameters | own["properties"]}
            whole["properties"] = {**body["properties"], "parameters": nested}
        if path in document["paths"]:
            document["paths"][path]["post"]["requestBody"]["content"] = _json(whole)
    return document


_ERROR = _object(["error"], error=_object(["code", "message"], code=_TEXT, message=_TEXT))


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}
