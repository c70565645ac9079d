"""Requests that parity sends beside the sample: edge cases where hosts are known to differ."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mii_azure.errors import SpecError
from scoring.schema.registry import task_schema
from scoring.schema.requests import TaskSchema

TOKENS = "tokens"  # name of a request that is of no task
_UNICODE = "Zoë paid 5 € for a naïve 名前 and a 😀, \u200btwice."

#: Long enough to exercise padding and windows, short enough for a decoder on two cores.
_LONG_WORDS = 64

#: Of tasks that generate text: how its tokens are found, how long it is, and what is told of it.
_GENERATED: list[dict[str, Any]] = [
    {"max_new_tokens": 4, "num_beams": 2, "num_return_sequences": 2, "length_penalty": 0.5, "early_stopping": True},
    {"max_length": 96, "min_length": 2, "repetition_penalty": 1.2, "no_repeat_ngram_size": 2, "use_cache": False},
    {
        "max_new_tokens": 6,
        "min_new_tokens": 2,
        "do_sample": True,
        "seed": 5,
        "top_k": 8,
        "top_p": 0.9,
        "typical_p": 0.9,
    },
    {"max_new_tokens": 6, "ignore_eos": True, "stop": [".", "e"], "cache_salt": "parity"},
    {"max_new_tokens": 3, "return_details": True, "top_n_tokens": 2},
    {"max_new_tokens": 6, "presence_penalty": 1.5, "frequency_penalty": 0.5, "logit_bias": {"5": 3.0, "7": -100}},
    {"max_new_tokens": 6, "min_p": 0.1, "temperature": 0.9, "seed": 3, "stop_token_ids": [9], "priority": 1},
    {"max_new_tokens": 6, "allowed_token_ids": [5, 7, 9], "return_token_ids": True, "continuous_usage_stats": True},
    {"max_new_tokens": 6, "bad_words": ["the", "a b"], "stop": ["e"], "include_stop_str_in_output": True},
]

#: Of tasks that embed; base64 would have to be equal to the last bit, where numbers need not be.
_EMBEDDING: list[dict[str, Any]] = [
    {"pooling": "weightedmean", "dimensions": 4, "normalize": True},
    {"pooling": "lasttoken", "prompt": "query: ", "truncate": True, "truncation_direction": "left"},
    {"input_type": "document", "truncation": True},
    {"prompt_name": "there is none"},
    {"dimensions": 2**30},
]

#: Of tasks that continue a text: answers bound to a grammar, and a grammar that is refused.
_BOUND: list[dict[str, Any]] = [
    {"max_new_tokens": 16, "guided_choice": ["yes", "nein", "ça va"]},
    {"max_new_tokens": 24, "response_format": {"type": "json_object"}},
    {"max_new_tokens": 8, "guided_json": {"type": "nothing"}},
    {"max_new_tokens": 8, "guided_json": {"enum": [[1, 22]]}, "guided_whitespace_pattern": " ?"},
    {"max_new_tokens": 8, "guided_regex": "[a-z]{2,4}"},
    {"max_new_tokens": 8, "guided_grammar": 'start: "yes" | "no"'},
    {"max_new_tokens": 8, "structured_outputs": {"choice": ["a", "b"]}},
]

#: Of tasks that continue a text: what its prompt tells, and a token that no model has.
_CONTINUED: list[dict[str, Any]] = [
    {"max_new_tokens": 4, "return_full_text": False},
    {"max_new_tokens": 6, "do_sample": True, "seed": 7, "temperature": 0.8, "top_p": 0.9},
    {"max_new_tokens": 2, "return_details": True, "prompt_logprobs": 1, "truncate_prompt_tokens": 16},
    {"max_new_tokens": 2, "logit_bias": {"2147483647": 1.0}},
    {"max_new_tokens": 2, "allowed_token_ids": [2147483647]},
    {"max_new_tokens": 4, "truncate_prompt_tokens": -1},
]

#: Of conversations; a template without tools refuses them on every host alike.
_TOOLS: list[dict[str, Any]] = [
    {"max_new_tokens": 24, "tools": [{"type": "function", "function": {"name": "now"}}], "tool_choice": "required"},
    {"max_new_tokens": 4, "tools": [{"type": "function", "function": {"name": "now"}}], "parallel_tool_calls": False},
    {"max_new_tokens": 4, "chat_template_kwargs": {"enable_thinking": False}},
    {"max_new_tokens": 4, "reasoning_effort": "none"},
    {"max_new_tokens": 4, "tool_choice": "required"},
    {"max_new_tokens": 4, "continue_final_message": True},
    {"max_new_tokens": 4, "add_generation_prompt": False},
]

#: Answered by models with sparse vectors, and refused by the others.
_SPARSE: list[dict[str, Any]] = [{"max_active_dims": 5, "sparse_keys": "token", "input_type": "document"}]

#: Of tasks that compare vectors.
_COMPARED: list[dict[str, Any]] = [
    {"prompt_name": "there is none"},
    {"truncation": True, "truncation_direction": "left"},
]

#: Parameter variants per task; every host must answer each alike.
_VARIANTS: dict[str, list[dict[str, Any]]] = {
    "text-generation": [*_CONTINUED, *_GENERATED, *_BOUND],
    "conversational": [*_CONTINUED, *_GENERATED, *_BOUND, *_TOOLS],
    "question-answering": [
        {"top_k": 3},
        {"handle_impossible_answer": True, "align_to_words": False},
        {"doc_stride": 8, "max_answer_len": 4, "max_question_len": 16, "max_seq_len": 64},
    ],
    "text-classification": [{"top_k": None}, {"function_to_apply": "none", "truncation": True}],
    "token-classification": [
        {"aggregation_strategy": "simple", "stride": 4},
        {"aggregation_strategy": "average", "ignore_labels": [], "truncation": True},
    ],
    "fill-mask": [{"top_k": 2}, {"targets": ["the", "a"], "truncation": True}],
    "feature-extraction": [{"pooling": "mean", "normalize": True}, *_EMBEDDING, *_SPARSE],
    "sentence-embeddings": [{"pooling": "cls"}, *_EMBEDDING, {"input_type": "query"}, *_SPARSE],
    "sentence-similarity": [{"pooling": "cls", "dimensions": 4}, {"prompt": "a: ", "truncate": True}, *_COMPARED],
    "zero-shot-classification": [
        {"candidate_labels": ["a", "b", "c"], "multi_label": True},
        {"candidate_labels": "one, two", "hypothesis_template": "It is {}!", "truncation": True},
        {"candidate_labels": ["a"], "hypothesis_template": "It is nothing."},
    ],
    "text-ranking": [
        {"top_k": 1, "return_text": True},
        {"raw_scores": True, "instruction": "Find: "},
        {"truncate": True, "max_tokens_per_doc": 2},
    ],
    "summarization": [{"max_new_tokens": 4, "truncation": True}, *_GENERATED],
    "translation": [
        {"max_new_tokens": 4, "truncation": True},
        {"max_new_tokens": 4, "src_lang": "en", "tgt_lang": "de"},
        {"max_new_tokens": 4, "task_type": "translation_en_to_de"},
        *_GENERATED,
    ],
    "automatic-speech-recognition": [
        {"max_new_tokens": 4, "return_timestamps": True, "return_segments": True},
        {"max_new_tokens": 4, "task": "transcribe", "prompt": "Names: Anna, Paul."},
        {"max_new_tokens": 4, "generate_kwargs": {"temperature": 0.0}},
        {"max_new_tokens": 4, "temperature": 0.5, "seed": 3},
        {"language": "no such language"},
    ],
    "text-to-image": [
        {"num_inference_steps": 4, "seed": 3, "height": 64, "width": 128, "negative_prompt": "blurry"},
        {"num_inference_steps": 4, "seed": 3, "guidance_scale": 1.0, "num_images_per_prompt": 2, "truncation": True},
        {"height": 2048, "width": 2048},
    ],
}


class Request(NamedTuple):
    """Request body to send, with a name for the report."""

    name: str
    body: str


def edge_requests(task_name: str, context_length: int, adapters: Sequence[str] = ()) -> list[Request]:
    """The sample and its edge cases for a task; `context_length` in tokens sizes the long ones.

    Each of the adapters beside the model is asked, and one that is not there.
    """
    task = task_schema(task_name)
    return [*_generate(task, context_length), *_adapted(task, adapters)]


def _adapted(task: TaskSchema, adapters: Sequence[str]) -> Iterator[Request]:
    for name in (*adapters, "there is none") if adapters else ():
        parameters = {**task.sample.get("parameters", {}), "adapter": name}
        yield Request(f"adapter {name}", _body({"inputs": task.sample["inputs"], "parameters": parameters}))


def _generate(task: TaskSchema, context_length: int) -> Iterator[Request]:
    sample = task.sample
    parameters = sample.get("parameters", {})
    value = sample["inputs"]
    if isinstance(value, list) and task.name != "conversational":
        value = value[0]
    unicode_value = _with_text(value, _UNICODE, task)
    yield Request("sample", _body(sample))
    yield Request("unicode", _body({"inputs": unicode_value, "parameters": parameters}))
    yield Request("list of one", _body({"inputs": [value], "parameters": parameters}))
    yield Request("list of three", _body({"inputs": [value, unicode_value, value], "parameters": parameters}))
    yield Request(
        "azure input_data", _body({"input_data": value if isinstance(value, dict) else [value], "params": parameters})
    )
    for variant in _VARIANTS[task.name]:
        yield Request(f"parameters {json.dumps(variant)}", _body({"inputs": value, "parameters": variant}))
    if task.embeds and isinstance(value, str):
        yield Request("token ids", _body({"inputs": [[5, 6, 7], [8, 9]]}))
        yield Request("unknown encoding", _body({"inputs": value, "encoding_format": "hex"}))
        yield Request("fields beside the inputs", _body({"inputs": value, "normalize": True, "pooling": "max"}))
    if task.ranks:
        yield Request("a pair", _body({"inputs": ["What is it?", _UNICODE]}))
        yield Request("pairs", _body({"inputs": [["a", "b"], ["c", ""]], "parameters": {"truncation": True}}))
    long = "long words " * min(context_length // 8, _LONG_WORDS)
    endless = "long words " * context_length
    yield Request("long", _body({"inputs": _with_text(value, long, task), "parameters": parameters}))
    yield Request("past the context", _body({"inputs": _with_text(value, endless, task), "parameters": parameters}))
    yield Request(TOKENS, _body({"mii_azure": "tokenize", "prompt": _UNICODE, "return_token_strs": True}))
    yield from _bad(value)


def _bad(value: Any) -> Iterator[Request]:
    yield Request("empty body", "")
    yield Request("empty object", "{}")
    yield Request("empty list", '{"inputs": []}')
    yield Request("not JSON", '{"inputs": ')
    yield Request("wrong type", '{"inputs": 5}')
    yield Request("NaN", '{"inputs": NaN}')
    yield Request("unknown parameter", _body({"inputs": value, "parameters": {"temprature": 1}}))


def _with_text(value: Any, text: str, task: TaskSchema) -> Any:
    """Replace the longest text in the sample's input."""
    if task.name == "conversational":
        return [*value[:-1], {**value[-1], "content": text}]
    if isinstance(value, dict):
        if isinstance(texts := value.get("texts"), list):
            return {**value, "texts": [*texts[:-1], text]}
        if "source_sentence" in value:
            return {**value, "source_sentence": text}
        return {**value, "context": text} if "context" in value else {**value, "text": text}
    return f"{text} [MASK]" if task.name == "fill-mask" else text


def _body(payload: Any) -> str:
    text = json.dumps(payload, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate has no form but its escape
        return json.dumps(payload)
    return text


def read_requests(path: Path) -> list[Request]:
    """Read requests from a file: one JSON body per line, or one JSON document that is a list of bodies."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"The requests file {path} cannot be read: {error}.") from None
    try:
        document = json.loads(text)
        bodies = [_body(entry) for entry in (document if isinstance(document, list) else [document])]
    except (ValueError, RecursionError):
        bodies = [line for line in text.splitlines() if line.strip()]
    if not bodies:
        raise SpecError(f"The requests file {path} holds no request.", "Write one JSON body per line.")
    return [Request(f"{path.name}:{number}", body) for number, body in enumerate(bodies, 1)]
