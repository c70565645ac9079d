"""Requests of /v1/responses as those of /v1/chat/completions: input items as messages, fields by their names there.

Nothing is stored: what refers to an earlier response is refused. Source of the forms: the types of the official client.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from local_runner.protocol import openai_errors, openai_requests
from scoring.errors import InvalidInput, InvalidParameter, MiiAzureError
from scoring.host_api import Deployment

PATH = "/v1/responses"
LOGPROBS = "message.output_text.logprobs"
ENCRYPTED = "reasoning.encrypted_content"  # what agents send back of a thought: here its text is in the item
#: Values that ask for nothing; any other value of these fields asks for a missing feature.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "background": (False,),
    "truncation": ("disabled",),
    **dict.fromkeys(("prompt", "max_tool_calls", "context_management", "moderation", "n", "messages"), ()),
    "num_return_sequences": (1,),
    "return_token_ids": (False,),
    "reasoning_effort": (),  # it is told in `reasoning` here
}
_STORED: dict[str, tuple[Any, ...]] = {"store": (False,), "previous_response_id": (), "conversation": ()}
#: Fields that change no answer.
_MARKS = {"metadata", "prompt_cache_options", "user", "service_tier", "safety_identifier", "prompt_cache_key"}
#: Fields that become others.
_READ = {"input", "instructions", "max_output_tokens", "tools", "tool_choice", "text", "reasoning", "include"}
_TEXTS = ("input_text", "output_text", "text", "reasoning_text", "summary_text")
_PLACES = {
    "response_format.json_schema": "text.format",
    "response_format": "text.format",
    "logprobs": "include",
    "reasoning_effort": "reasoning.effort",
}

Message = dict[str, Any]


def handed_on(path: str, task: str, names: Iterable[str]) -> list[str]:
    """Parameters of a task that a body of this path may name at its top level, as the task names them."""
    if path != PATH:
        return []
    done = _READ | _MARKS | _NEUTRAL.keys() | _STORED.keys()
    return [name for name in openai_requests.handed_on("/v1/chat/completions", task, names) if name not in done]


def canonical(sent: dict[str, Any], deployment: Deployment) -> dict[str, Any]:
    """Canonical request for a body of /v1/responses; raises InvalidInput or InvalidParameter."""
    for name, neutral in (_NEUTRAL | _STORED).items():
        if sent.get(name) is not None and not any(sent[name] is value or sent[name] == value for value in neutral):
            if name in _STORED:
                raise InvalidParameter("Nothing is stored here.", "Send the whole conversation as its input.", name)
            raise InvalidParameter(f"{name} is not served here.", f'Leave out "{name}".', name)
    done = _READ | _MARKS | _NEUTRAL.keys() | _STORED.keys()
    asked = {name: value for name, value in sent.items() if name not in done and value is not None}
    asked |= {"max_new_tokens": sent.get("max_output_tokens"), "response_format": _format(sent.get("text"))}
    asked |= {"tools": _tools(sent.get("tools")), "tool_choice": _choice(sent.get("tool_choice"))}
    messages = _messages(sent.get("input"), sent.get("instructions"))
    if messages[-1]["role"] == "assistant" and "tool_calls" not in messages[-1]:
        asked.setdefault("continue_final_message", False)
    _think(sent.get("reasoning"), asked)
    _include(sent.get("include"), asked)
    return openai_requests.chat({**asked, "messages": messages}, deployment)


@contextmanager
def in_words_of(sent: Mapping[str, Any]) -> Iterator[None]:
    """Rename the fields in errors raised inside to those of this path."""
    try:
        with openai_errors.in_words_of(sent, "messages"):
            yield
    except MiiAzureError as error:
        openai_errors.rename_place(error, sent, _PLACES)
        error.where = "input" if error.where.startswith("messages") else error.where
        raise


def _format(text: Any) -> Any:
    """The format of the answer in the form of /v1/chat/completions."""
    if text is None:
        return None
    if (
        not isinstance(text, dict)
        or set(text) - {"format", "verbosity"}
        or text.get("verbosity") not in (None, "medium")
    ):
        remedy = "verbosity is medium: say in the instructions how long answers are to be."
        raise InvalidParameter('"text" holds a "format".', remedy, "text")
    wanted = text.get("format")
    if not isinstance(wanted, dict) or wanted.get("type") != "json_schema":
        return wanted
    return {"type": "json_schema", "json_schema": {name: wanted[name] for name in wanted if name != "type"}}


def _tools(tools: Any) -> Any:
    if not isinstance(tools, list):
        return tools
    return [_tool(tool, f"tools[{at}]") for at, tool in enumerate(tools)]


def _tool(tool: Any, where: str) -> dict[str, Any]:
    if not isinstance(tool, dict) or tool.get("type") != "function":
        raise InvalidParameter("Only functions are called here.", 'Send {"type": "function", "name": ...}.', where)
    function = {name: value for name, value in tool.items() if name != "type" and value not in (None, False)}
    return {"type": "function", "function": function}


def _choice(choice: Any) -> Any:
    if not isinstance(choice, dict):
        return choice
    if choice.get("type") == "allowed_tools":
        named = choice.get("tools")
        tools = [_choice(each) for each in named] if isinstance(named, list) else named
        return {"type": "allowed_tools", "allowed_tools": {"mode": choice.get("mode"), "tools": tools}}
    if choice.get("type") != "function":
        raise InvalidParameter("tool_choice names a function.", where="tool_choice")
    return {"type": "function", "function": {"name": choice.get("name")}}


def _think(reasoning: Any, asked: dict[str, Any]) -> None:
    """Read how much the model is to think; a summary of its thought is told only where none has to be made."""
    if reasoning is None:
        return
    if not isinstance(reasoning, dict) or {name for name in reasoning if reasoning[name]} - {"effort", "summary"}:
        raise InvalidParameter('"reasoning" holds an "effort".', where="reasoning")
    if reasoning.get("summary") not in (None, "auto", "none"):
        raise InvalidParameter(
            "A thought is told as it is, without a summary.", 'Leave it out, or send "auto".', "reasoning.summary"
        )
    asked["reasoning_effort"] = reasoning.get("effort")


def _include(include: Any, asked: dict[str, Any]) -> None:
    if include is None:
        return
    if not isinstance(include, list) or any(each not in (LOGPROBS, ENCRYPTED) for each in include):
        raise InvalidParameter(f"Only {LOGPROBS} can be included.", "Leave out the others.", "include")
    if LOGPROBS in include:
        asked["logprobs"] = True


def _messages(given: Any, instructions: Any) -> list[Message]:
    """Messages of the input, behind the instructions."""
    if not isinstance(instructions, str | None):
        raise InvalidInput("The instructions are a text.", where="instructions")
    found: list[Message] = [{"role": "system", "content": instructions}] if instructions else []
    if isinstance(given, str) and given:
        return [*found, {"role": "user", "content": given}]
    if not isinstance(given, list) or not given:
        raise InvalidInput("The input is a text, or a list of items.", 'Send {"input": "..."}.', "input")
    thought = ""
    for at, item in enumerate(given):
        where = f"input[{at}]"
        if not isinstance(item, dict):
            raise InvalidInput("An item is a JSON object.", where=where)
        if item.get("type") == "reasoning":
            thought = _text(item.get("content") or item.get("summary") or [], f"{where}.content")
            continue
        _append(found, item, where)
        if thought and found[-1]["role"] == "assistant":
            found[-1]["reasoning_content"] = thought
        thought = ""
    if len(found) == bool(instructions):
        raise InvalidInput("The input holds no message.", 'Send {"role": "user", "content": "..."}.', "input")
    return found


def _append(found: list[Message], item: dict[str, Any], where: str) -> None:
    """Append an item; calls belong to the assistant's message before them."""
    kind = item.get("type", "message")
    if kind == "message":
        found.append({"role": item.get("role"), "content": _text(item.get("content"), f"{where}.content")})
    elif kind == "function_call":
        if not found or found[-1]["role"] != "assistant":
            found.append({"role": "assistant", "content": ""})
        function = {"name": item.get("name"), "arguments": item.get("arguments")}
        call = {"id": item.get("call_id"), "type": "function", "function": function}
        found[-1].setdefault("tool_calls", []).append(call)
    elif kind == "function_call_output":
        told = _text(item.get("output"), f"{where}.output")
        found.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": told})
    else:
        hint = "Nothing is stored here." if kind == "item_reference" else "Send messages, calls and their outputs."
        raise InvalidInput(f"An item of type {str(kind)[:80]!r} is not served here.", hint, f"{where}.type")


def _text(content: Any, where: str) -> str:
    """Text of a content: as it is, or of its parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidInput("A content is a text, or a list of parts.", where=where)
    for at, part in enumerate(content):
        if not isinstance(part, dict) or part.get("type") not in _TEXTS or not isinstance(part.get("text"), str):
            raise InvalidInput(
                "Only parts of text are taken.", 'Send {"type": "input_text", "text": "..."}.', f"{where}[{at}]"
            )
    return "".join(part["text"] for part in content)
