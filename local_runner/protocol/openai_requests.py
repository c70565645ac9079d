"""OpenAI's requests as canonical ones: meaning of each field here, and fields that cannot be honoured.

Fields that OpenAI names differently are renamed, fields that change nothing are dropped, fields that would change the
answer but are unsupported are refused; any other field goes to the scoring script as a parameter, to be checked there.
"""

import json
from collections.abc import Iterable
from typing import Any

from local_runner.errors import ModelNotServed, served_as
from local_runner.protocol.allowed_tools import offering_allowed
from local_runner.protocol.openai_messages import message_of
from scoring.errors import InvalidInput, InvalidParameter
from scoring.host_api import Deployment

MOST_EMBEDDED = 2048  # inputs of a request for vectors, OpenAI's limit
MOST_LIKELIEST = 20  # alternatives reported per token, OpenAI's limit for chats
COMPLETION_TOKENS = 16  # OpenAI's own default for /v1/completions
#: Name of the answer's text, for each task that /v1/completions serves.
TEXT_KEYS = {
    "text-generation": "generated_text",
    "summarization": "summary_text",
    "translation": "translation_text",
}
#: Names for whatever model is here: what huggingface_hub's InferenceClient sends to a URL, and TGI's users by custom.
_ANY_MODEL = ("dummy", "tgi")
_EMBEDDING_TASKS = ("sentence-embeddings", "feature-extraction")
#: Vectors that are no list of numbers, by the form that a deployment's options name.
_FORMS = {"sparse": "sparse vectors", "multi_vector": "a vector for each token"}
_RENAMED = {
    "n": "num_return_sequences",
    "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
    "min_tokens": "min_new_tokens",
}
#: Fields that change no answer: marks for bookkeeping, billing and caches of OpenAI's own.
_MARKS = {
    *("user", "metadata", "store", "service_tier", "safety_identifier", "request_id"),
    *("prompt_cache_key", "prompt_cache_retention", "prompt_cache_options", "guided_decoding_backend"),
    "prediction",  # of the answer: it makes one faster, never another
}
#: Fields that this module reads itself, by path; any other goes to the scoring script.
_READ = {
    "/v1/completions": {"model", "prompt", "echo", "logprobs", "stream", "stream_options"},
    "/v1/chat/completions": {"model", "messages", "logprobs", "top_logprobs", "stream", "stream_options"},
    "/v1/embeddings": {"model", "input", "truncate_prompt_tokens"},
}
#: Values that request nothing; any other value of these fields requests a missing feature.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "suffix": ("",),
    "best_of": (1,),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "return_full_text": (),  # it is called echo here
    "verbosity": ("medium",),
    **dict.fromkeys(("audio", "web_search_options", "prompt_embeds"), ()),
    # Fields of vLLM's clients that send each of them with its default.
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True, False),  # there are none beside others
    "use_beam_search": (False,),
    "detokenize": (True,),
    "return_tokens_as_token_ids": (False,),
    "continuous_usage_stats": (),  # it is told in `stream_options`
    "include_reasoning": (True,),
    **dict.fromkeys(("logits_processors", "documents"), ([],)),
    **dict.fromkeys(("vllm_xargs", "mm_processor_kwargs"), ({},)),
}
#: The same of fields that only conversations have, or have another default.
_NEUTRAL_IN_CHATS: dict[str, tuple[Any, ...]] = {"add_special_tokens": (False,), "echo": (False,)}
_NEUTRAL_IN_COMPLETIONS: dict[str, tuple[Any, ...]] = {
    "add_special_tokens": (True,),
    "reasoning_effort": ("none",),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
}
#: Lists that mean nothing where they are empty.
_NO_LISTS = ("stop", "stop_token_ids", "bad_words", "allowed_token_ids")
_STREAM_OPTIONS = {
    "include_usage": (True, False),
    "include_obfuscation": (False,),
    "continuous_usage_stats": (True, False),
}
#: Ways around fields that are not served, where leaving them out is not all that can be done.
_REMEDIES = {
    "prompt_embeds": 'Send the prompt as a text or as token ids, in "prompt".',
    "skip_special_tokens": 'Ask for "return_token_ids": true, whose ids have special tokens too.',
    "detokenize": 'Leave it out; "return_token_ids": true answers with the ids beside the text.',
    "verbosity": "Say in a system message how long answers are to be.",
    "modalities": 'Answers are texts: ["text"].',
    "continuous_usage_stats": 'Send it in "stream_options".',
    "best_of": 'Ask for as many answers with "n", and take the best of them by their logprobs.',
    "use_beam_search": '"num_beams" searches with beams.',
    "suffix": "Write what follows into the prompt, as the model's own form of filling in has it.",
    "return_tokens_as_token_ids": 'Ask for "return_token_ids": true.',
    **dict.fromkeys(("functions", "function_call"), 'Send "tools" and "tool_choice".'),
}


def completion(sent: dict[str, Any], deployment: Deployment) -> dict[str, Any]:
    """Canonical request for a body of /v1/completions; its inputs are always a list unless it streams."""
    _check(sent, deployment, tuple(TEXT_KEYS), "/v1/completions")
    _flag(sent, "echo")
    prompt = sent.get("prompt")
    prompts = prompt if isinstance(prompt, list) and not _is_tokens(prompt) else [prompt]
    if not prompts or not all(isinstance(each, str) or _is_tokens(each) for each in prompts):
        raise InvalidInput("The prompt is no text, no token ids, and no list of such.", "Send a text.", "prompt")
    if sent.get("stream") is True and sent.get("echo") is True and not all(isinstance(each, str) for each in prompts):
        raise InvalidParameter("A stream repeats texts, and this prompt is token ids.", "Send a text.", "echo")
    own = _parameters(sent, "/v1/completions") | _adapter(sent, deployment)
    parameters = {"max_new_tokens": COMPLETION_TOKENS, **own, **_completion_details(sent)}
    if only_repeats(sent):
        if sent.get("stream") is True:
            raise InvalidParameter("A prompt alone is not streamed.", 'Leave out "stream".', "max_tokens")
        parameters |= {"max_new_tokens": 1, "return_details": True}  # the details tell what to leave out
    if deployment.task == "text-generation":
        parameters["return_full_text"] = sent.get("echo") is True
    elif sent.get("echo"):
        raise InvalidParameter(f"{deployment.task} does not repeat its input.", 'Leave out "echo".', "echo")
    return _canonical(sent, prompts, parameters)


def only_repeats(sent: dict[str, Any]) -> bool:
    """Return True for a completion of no tokens, which is its prompt: what scores texts asks for its log-probabilities.

    The script generates one token, which is left out of the answer.
    """
    return sent.get("echo") is True and type(sent.get("max_tokens")) is int and sent["max_tokens"] == 0


def _is_tokens(prompt: Any) -> bool:
    """Return True for the token ids of one text."""
    return isinstance(prompt, list) and bool(prompt) and all(type(each) is int for each in prompt)


def chat(sent: dict[str, Any], deployment: Deployment) -> dict[str, Any]:
    """Canonical request for a body of /v1/chat/completions."""
    _check(sent, deployment, ("conversational",), "/v1/chat/completions")
    sent = offering_allowed(sent)
    messages = sent.get("messages")
    if not isinstance(messages, list) or not messages:
        raise InvalidInput("The messages are missing.", 'Send [{"role": "user", "content": "..."}].', "messages")
    conversation = [message_of(message, f"messages[{at}]") for at, message in enumerate(messages)]
    own = _parameters(sent, "/v1/chat/completions") | _adapter(sent, deployment)
    parameters = {**own, **_chat_details(sent), "return_full_text": False}
    return _canonical(sent, [conversation], parameters)


def embeddings(sent: dict[str, Any], deployment: Deployment) -> dict[str, Any]:
    """Canonical request for a body of /v1/embeddings."""
    _check(sent, deployment, _EMBEDDING_TASKS, "/v1/embeddings")
    if form := _FORMS.get(deployment.task_options.get("form", "")):
        raise InvalidInput(
            f"This model answers {form}, and clients of /v1/embeddings take one list of numbers a text.",
            "Send the texts to /score; with the task sentence-similarity, /v1/rerank and /v1/score compare them.",
            "model",
        )
    value = sent.get("input")
    inputs = value if isinstance(value, list) and not _is_tokens(value) else [value]
    if not inputs or not all(isinstance(each, str) or _is_tokens(each) for each in inputs):
        raise InvalidInput("The input must be a text, its token ids, or a list of either.", where="input")
    if len(inputs) > MOST_EMBEDDED:
        raise InvalidInput(f"There are {len(inputs):,} inputs; at most {MOST_EMBEDDED:,} are taken.", where="input")
    if sent.get("encoding_format") not in (None, "float", "base64"):
        raise InvalidParameter("encoding_format is float or base64.", where="encoding_format")
    # A list of token vectors is no embedding; feature-extraction returns those by default.
    pooled = {"pooling": "model"} if deployment.task == "feature-extraction" else {}
    parameters = {**pooled, **_parameters(sent, "/v1/embeddings"), **cut_at_context(sent)}
    return {"inputs": inputs, "parameters": parameters, "options": {"usage": True}}


def cut_at_context(sent: dict[str, Any]) -> dict[str, Any]:
    """Parameter of vLLM's `truncate_prompt_tokens` of texts that are not continued: -1 cuts them at the context."""
    most = sent.get("truncate_prompt_tokens")
    if most not in (None, -1) or isinstance(most, bool):
        raise InvalidParameter(
            "truncate_prompt_tokens is not served with that value.", "-1 cuts at the context.", "truncate_prompt_tokens"
        )
    return {} if most is None else {"truncation": True}


def answered_as(sent: dict[str, Any], deployment: Deployment) -> str:
    """Name of the model in an answer: the one of this runner's that was asked for."""
    return str(sent["model"]) if sent.get("model") in served_names(deployment) else deployment.name


def served_names(deployment: Deployment) -> tuple[str, ...]:
    """Names of models that a request may give: the deployment's own, and those of adapters beside it."""
    return (*deployment.names, *deployment.beside)


def wants_usage(sent: dict[str, Any]) -> bool:
    """True if a stream's last event reports its usage."""
    return bool((sent.get("stream_options") or {}).get("include_usage"))


def wants_usage_throughout(sent: dict[str, Any]) -> bool:
    """True if each event of a stream reports the usage so far."""
    return bool((sent.get("stream_options") or {}).get("continuous_usage_stats"))


def repeated(canonical: dict[str, Any]) -> str:
    """Prompt that a stream's answers begin with: the scoring script streams only what is new."""
    return str(canonical["inputs"]) if canonical["parameters"].get("return_full_text") else ""


def handed_on(path: str, task: str, names: Iterable[str]) -> list[str]:
    """Parameters of a task that a body of this path may name at its top level, as the task names them."""
    served = {
        "/v1/completions": tuple(TEXT_KEYS),
        "/v1/chat/completions": ("conversational",),
        "/v1/embeddings": _EMBEDDING_TASKS,
    }
    if task not in served.get(path, ()):
        return []
    done = _MARKS | _READ[path] | _neutral(path).keys()
    return [name for name in names if name not in done]


def check_served(sent: dict[str, Any], deployment: Deployment, tasks: tuple[str, ...], path: str) -> None:
    """Raise InvalidInput for a task that this path does not serve, ModelNotServed for another model's name."""
    if deployment.task not in tasks:
        hint = f"{path} answers for {', '.join(tasks)}; /score takes every task."
        raise InvalidInput(f"This deployment serves {deployment.task}.", hint, "model")
    model = sent.get("model")
    if model not in (None, "", *_ANY_MODEL, *served_names(deployment), deployment.model.id):
        raise ModelNotServed(f"No model {str(model)[:80]!r} here.", served_as(served_names(deployment)), where="model")


def _check(sent: dict[str, Any], deployment: Deployment, tasks: tuple[str, ...], path: str) -> None:
    """Refuse another model's name, a task that this path does not serve, and unsupported fields."""
    check_served(sent, deployment, tasks, path)
    _flag(sent, "stream")
    _check_stream_options(sent)
    _check_twice_named(sent)
    for name, neutral in _neutral(path).items():
        value = sent.get(name)
        neutral = (*neutral, sent.get("n")) if name == "best_of" else neutral  # as many as are answered: no choice
        if value is not None and json.dumps(value) not in map(json.dumps, neutral):
            remedy = _REMEDIES.get(name, f'Leave out "{name}".')
            raise InvalidParameter(f"{name} is not served here.", remedy, name)


def _neutral(path: str) -> dict[str, tuple[Any, ...]]:
    return _NEUTRAL | (_NEUTRAL_IN_CHATS if path == "/v1/chat/completions" else _NEUTRAL_IN_COMPLETIONS)


def _flag(sent: dict[str, Any], name: str) -> None:
    if not isinstance(sent.get(name, False), bool | None):
        raise InvalidParameter(f'"{name}" must be true or false.', where=name)


def _check_stream_options(sent: dict[str, Any]) -> None:
    options = sent.get("stream_options")
    if options is None:
        return
    if sent.get("stream") is not True or not isinstance(options, dict):
        raise InvalidParameter("stream_options is an object, for a stream.", 'Set "stream": true.', "stream_options")
    for name, value in options.items():
        if value is not None and not any(value is known for known in _STREAM_OPTIONS.get(name, ())):
            where = f"stream_options.{name[:80]}"
            raise InvalidParameter(f"{where} is not served with that value.", 'Here is "include_usage": true.', where)
    if options.get("continuous_usage_stats") and not options.get("include_usage"):
        raise InvalidParameter(
            "continuous_usage_stats tells a stream's usage, which is not asked for.",
            'Set "include_usage": true too.',
            "stream_options.continuous_usage_stats",
        )


def _check_twice_named(sent: dict[str, Any]) -> None:
    """Refuse one setting with two values under two names, of which only one could hold."""
    found: dict[str, str] = {}
    for name in (each for each in sent if sent[each] is not None):
        other = found.setdefault(_RENAMED.get(name, name), name)
        if sent[other] != sent[name]:
            raise InvalidParameter(f"{other} and {name} are the same setting.", f'Leave out "{other}".', name)


def _parameters(sent: dict[str, Any], path: str) -> dict[str, Any]:
    given = {name: value for name, value in sent.items() if value is not None}
    done = _MARKS | _READ[path] | _neutral(path).keys()
    parameters = {
        _RENAMED.get(name, name): value
        for name, value in given.items()
        if name not in done and not (name in _NO_LISTS and value == [])
    }
    if wants_usage_throughout(sent):
        parameters["continuous_usage_stats"] = True
    if "response_format" in parameters:
        parameters["response_format"] = _response_format(parameters["response_format"])
    if "prompt_logprobs" in parameters:
        if sent.get("stream"):
            raise InvalidParameter(
                "The prompt's own log-probabilities are not streamed.", 'Leave out "stream".', "prompt_logprobs"
            )
        parameters["return_details"] = True
    # OpenAI samples by default; here several answers have to be sampled, and one is the likeliest.
    if given.get("n") not in (None, 1) and "temperature" not in given:
        parameters.setdefault("do_sample", True)
    return parameters


def _response_format(asked: Any) -> Any:
    """A format as OpenAI writes it; huggingface_hub's client sends a schema as the "value" of a json_object."""
    if not isinstance(asked, dict) or set(asked) != {"type", "value"} or asked["type"] not in ("json", "json_object"):
        return asked
    return {"type": "json_schema", "json_schema": {"schema": asked["value"], "strict": True}}


def _adapter(sent: dict[str, Any], deployment: Deployment) -> dict[str, Any]:
    """Parameter of a request whose model is an adapter's name."""
    return {"adapter": sent["model"]} if sent.get("model") in deployment.beside else {}


def _completion_details(sent: dict[str, Any]) -> dict[str, Any]:
    """`logprobs` of /v1/completions is a number: that many of the likeliest tokens in place of each."""
    asked = sent.get("logprobs")
    if asked is None or asked is False:
        return {}
    if sent.get("echo") is True:
        return {**_details(asked, "logprobs"), **_echoed(sent, asked)}
    return _details(asked, "logprobs")


def _echoed(sent: dict[str, Any], most: int) -> dict[str, Any]:
    """Log-probabilities of a prompt that is repeated."""
    if sent.get("stream"):
        raise InvalidParameter(
            "The prompt's own log-probabilities are not streamed.", 'Leave out "stream", "echo" or "logprobs".', "echo"
        )
    if sent.get("prompt_logprobs") is not None:
        raise InvalidParameter("echo with logprobs tells them already.", where="prompt_logprobs")
    if sent.get("truncate_prompt_tokens") is not None:  # the text repeats the whole prompt, the model sees its end
        raise InvalidParameter(
            "A prompt that is cut has no log-probabilities to repeat.",
            'Leave out "truncate_prompt_tokens", "echo" or "logprobs".',
            "truncate_prompt_tokens",
        )
    return {"prompt_logprobs": most}


def _chat_details(sent: dict[str, Any]) -> dict[str, Any]:
    """`logprobs` of /v1/chat/completions is a boolean, and `top_logprobs` the number."""
    _flag(sent, "logprobs")
    asked, most = sent.get("logprobs"), sent.get("top_logprobs")
    if most is not None and not asked:
        raise InvalidParameter("top_logprobs needs logprobs.", 'Set "logprobs": true.', "top_logprobs")
    return _details(most or 0, "top_logprobs") if asked else {}


def _details(most: Any, where: str) -> dict[str, Any]:
    if type(most) is not int or not 0 <= most <= MOST_LIKELIEST:
        raise InvalidParameter(f"{where} is a number from 0 to {MOST_LIKELIEST}.", where=where)
    return {"return_details": True, "top_n_tokens": most}


def _canonical(sent: dict[str, Any], inputs: list[Any], parameters: dict[str, Any]) -> dict[str, Any]:
    stream = sent.get("stream") is True
    single = stream and len(inputs) == 1
    return {
        "inputs": inputs[0] if single else inputs,
        "parameters": parameters,
        "options": {"usage": True},
        **({"stream": True} if stream else {}),
    }
