"""Requests of Anthropic's messages as those of /v1/chat/completions: blocks as messages, fields by their names there.

Fields of neither go to the scoring script as parameters. Source of the forms: the types of the official client.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from local_runner.protocol import openai_errors, openai_requests
from scoring.errors import InvalidInput, InvalidParameter, MiiAzureError
from scoring.host_api import Deployment

PATH = "/v1/messages"
#: Values that ask for nothing; any other value of these fields asks for a missing feature.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "speed": ("standard",),
    "num_return_sequences": (1,),
    **dict.fromkeys(("logprobs", "return_details", "return_token_ids"), (False,)),  # its answers have no place for them
    **dict.fromkeys(("container", "mcp_servers", "n", "max_completion_tokens", "reasoning_effort"), ()),
    **dict.fromkeys(("top_logprobs", "prompt_logprobs"), ()),
}
#: Fields that change no answer.
_MARKS = {
    *("metadata", "service_tier", "cache_control", "inference_geo", "diagnostics", "user_profile_id", "workspace_id"),
}
#: Fields that become others.
_READ = {
    *("messages", "system", "stop_sequences", "tools", "tool_choice", "thinking", "output_config", "output_format"),
    "context_management",
}
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
_PLACES = {
    "stop": "stop_sequences",
    "response_format.json_schema": "output_config.format",
    "response_format": "output_config.format",
    "reasoning_effort": "thinking",
}
_OF_TOOL = re.compile(r"\.function(\.parameters)?")
_SCHEMA = ".input_schema"
_ON = "high"  # the effort where a request names none

Message = dict[str, Any]


def handed_on(path: str, task: str, names: Iterable[str]) -> list[str]:
    """Parameters of a task that a body of this path may name at its top level, as the task names them."""
    if path != PATH:
        return []
    done = _READ | _MARKS | _NEUTRAL.keys()
    return [name for name in openai_requests.handed_on("/v1/chat/completions", task, names) if name not in done]


def canonical(sent: dict[str, Any], deployment: Deployment) -> dict[str, Any]:
    """Canonical request for a body of /v1/messages; raises InvalidInput or InvalidParameter."""
    if sent.get("max_tokens") is None:
        raise InvalidParameter("max_tokens is missing.", "Say how many tokens there may be.", "max_tokens")
    return openai_requests.chat(_as_chat(sent), deployment)


def tokens(sent: dict[str, Any], deployment: Deployment) -> dict[str, Any]:
    """Request for the tokens of a body of /v1/messages/count_tokens."""
    asked = openai_requests.chat(_as_chat({**sent, "stream": None}), deployment)
    prompt = ("tools", "tool_choice", "chat_template_kwargs", "reasoning_effort")
    parameters = {name: asked["parameters"][name] for name in prompt if name in asked["parameters"]}
    return {"mii_azure": "tokenize", "messages": asked["inputs"][0], "parameters": parameters}


@contextmanager
def in_words_of(sent: Mapping[str, Any]) -> Iterator[None]:
    """Rename the fields in errors raised inside to those of this path."""
    try:
        with openai_errors.in_words_of(sent, "messages"):
            yield
    except MiiAzureError as error:
        openai_errors.rename_place(error, sent, _PLACES)
        if error.where == "thinking":
            _place_thought(sent, error)
        error.where = _OF_TOOL.sub(lambda found: _SCHEMA if found[1] else "", error.where)
        raise


def _place_thought(sent: Mapping[str, Any], error: MiiAzureError) -> None:
    """Say where an effort was sent, and in this path's words what to send instead."""
    error.hint = error.hint.replace('send "none"', 'send {"type": "disabled"}')
    if (sent.get("output_config") or {}).get("effort"):
        error.where = "output_config.effort" if "Input should be" in error.message else error.where


def _as_chat(sent: dict[str, Any]) -> dict[str, Any]:
    """The request as one of /v1/chat/completions."""
    for name, neutral in _NEUTRAL.items():
        if sent.get(name) is not None and sent[name] not in neutral:
            raise InvalidParameter(f"{name} is not served here.", f'Leave out "{name}".', name)
    done = _READ | _MARKS | _NEUTRAL.keys()
    asked = {name: value for name, value in sent.items() if name not in done and value is not None}
    _check_context(sent.get("context_management"))
    asked |= {"stop": sent.get("stop_sequences"), "tools": _tools(sent.get("tools"))}
    asked |= _choice(sent.get("tool_choice"))
    _think(sent.get("thinking"), sent.get("output_config"), asked)
    _bind(sent, asked)
    return {**asked, "messages": _messages(sent.get("messages"), sent.get("system"))}


def _check_context(asked: Any) -> None:
    """Refuse edits of the conversation, but those that keep all of it."""
    edits = asked.get("edits") if isinstance(asked, dict) else asked
    if edits is not None and not (
        isinstance(edits, list) and all(isinstance(edit, dict) and edit.get("keep") == "all" for edit in edits)
    ):
        raise InvalidParameter("A conversation is taken as it is.", "Leave it out.", "context_management")


def _tools(tools: Any) -> Any:
    if not isinstance(tools, list):
        return tools
    return [_tool(tool, f"tools[{at}]") for at, tool in enumerate(tools)]


def _tool(tool: Any, where: str) -> dict[str, Any]:
    if not isinstance(tool, dict) or tool.get("type") not in (None, "custom"):
        raise InvalidParameter(
            "Only tools of the caller's own are called here.", 'Send {"name": ..., "input_schema": {...}}.', where
        )
    names = {"name": "name", "description": "description", "input_schema": "parameters", "strict": "strict"}
    function = {ours: tool[theirs] for theirs, ours in names.items() if tool.get(theirs) is not None}
    return {"type": "function", "function": function}


def _choice(choice: Any) -> dict[str, Any]:
    if choice is None:
        return {}
    kind = choice.get("type") if isinstance(choice, dict) else None
    if kind not in ("tool", *_CHOICES):
        raise InvalidParameter("tool_choice has a type: auto, any, tool or none.", where="tool_choice")
    named = {"type": "function", "function": {"name": choice.get("name")}}
    one = {"parallel_tool_calls": False} if choice.get("disable_parallel_tool_use") else {}
    return {"tool_choice": named if kind == "tool" else _CHOICES[kind], **one}


def _think(thinking: Any, output: Any, asked: dict[str, Any]) -> None:
    """Turn the thought on or off; adaptive leaves it to the model, as does a request that says nothing."""
    kind = thinking.get("type") if isinstance(thinking, dict) else thinking
    if kind not in (None, "enabled", "disabled", "adaptive"):
        raise InvalidParameter("thinking has a type: enabled, adaptive or disabled.", where="thinking")
    if kind == "disabled":
        asked["reasoning_effort"] = "none"
    elif kind == "enabled":
        effort = output.get("effort") if isinstance(output, dict) else None
        asked["reasoning_effort"] = effort or _ON


def _bind(sent: dict[str, Any], asked: dict[str, Any]) -> None:
    """Bind the answer to a JSON schema, where the request has one."""
    output = sent.get("output_config")
    if not isinstance(output, dict | None) or set(output or {}) - {"effort", "format"}:
        raise InvalidParameter('output_config holds an "effort" and a "format".', where="output_config")
    wanted = (output or {}).get("format") or sent.get("output_format")
    if wanted is None:
        return
    if not isinstance(wanted, dict) or wanted.get("type") != "json_schema":
        raise InvalidParameter("A format has the type json_schema.", where="output_config.format")
    schema = {"name": "answer", "schema": wanted.get("schema"), "strict": True}
    asked["response_format"] = {"type": "json_schema", "json_schema": schema}


def _messages(given: Any, system: Any) -> list[Message]:
    if not isinstance(given, list) or not given:
        raise InvalidInput("The messages are missing.", 'Send [{"role": "user", "content": "..."}].', "messages")
    told = _text(system, "system") if system else ""
    found: list[Message] = [{"role": "system", "content": told}] if told else []
    for at, message in enumerate(given):
        where = f"messages[{at}]"
        if not isinstance(message, dict) or message.get("role") not in ("user", "assistant", "system"):
            raise InvalidInput('A message has the role "user" or "assistant".', where=where)
        content = message.get("content")
        if isinstance(content, str):
            found.append({"role": message["role"], "content": content})
        elif message["role"] == "assistant":
            found.append(_of_assistant(content, f"{where}.content"))
        else:
            found += _of_user(content, message["role"], f"{where}.content")
    return found


def _of_assistant(content: Any, where: str) -> Message:
    """Message of the assistant's blocks: its text, its thought, its calls."""
    message: Message = {"role": "assistant", "content": ""}
    for block, place in _blocks(content, where):
        kind = block.get("type")
        if kind == "tool_use":
            given = block.get("input") or {}
            if not isinstance(given, dict):
                raise InvalidInput("The input of a call is an object.", where=f"{place}.input")
            function = {"name": _string(block, "name", place), "arguments": json.dumps(given, ensure_ascii=False)}
            call = {"id": _string(block, "id", place), "type": "function", "function": function}
            message.setdefault("tool_calls", []).append(call)
        elif kind == "thinking":
            message["reasoning_content"] = message.get("reasoning_content", "") + _string(block, "thinking", place)
        elif kind != "text":
            raise _unknown(kind, "text, thinking and tool_use", place)
        else:
            message["content"] += _string(block, "text", place)
    return message


def _of_user(content: Any, role: str, where: str) -> list[Message]:
    """Messages of a user's blocks: what tools answered, and what is said beside."""
    found: list[Message] = []
    said: list[str] = []
    for block, place in _blocks(content, where):
        kind = block.get("type")
        if kind == "tool_result":
            told = block.get("content")
            text = _text(told, f"{place}.content") if told else ""
            found.append({"role": "tool", "tool_call_id": _string(block, "tool_use_id", place), "content": text})
        elif kind != "text":
            raise _unknown(kind, "text and tool_result", place)
        else:
            said.append(_string(block, "text", place))
    return [*found, {"role": role, "content": "\n".join(said)}] if said or not found else found


def _blocks(content: Any, where: str) -> Iterator[tuple[dict[str, Any], str]]:
    if not isinstance(content, list) or not all(isinstance(block, dict) for block in content):
        raise InvalidInput("A content is a text, or a list of blocks.", 'Send [{"type": "text", ...}].', where)
    for at, block in enumerate(content):
        yield block, f"{where}[{at}]"


def _text(content: Any, where: str) -> str:
    """Text of a content: as it is, or of its blocks."""
    if isinstance(content, str):
        return content
    found = []
    for block, place in _blocks(content, where):
        if block.get("type") != "text":
            raise _unknown(block.get("type"), "text", place)
        found.append(_string(block, "text", place))
    return "\n".join(found)


def _string(block: dict[str, Any], name: str, where: str) -> str:
    text = block.get(name)
    if not isinstance(text, str):
        raise InvalidInput(f'The block has no text "{name}".', where=f"{where}.{name}")
    return text


def _unknown(kind: Any, known: str, where: str) -> InvalidInput:
    return InvalidInput(f"A block of type {str(kind)[:80]!r} is not served here.", f"Blocks are {known}.", where)
