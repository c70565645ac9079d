"""Messages of OpenAI's conversations as canonical ones."""

from typing import Any

from scoring.errors import InvalidInput

_ROLES = {"developer": "system"}
#: Fields that are honoured beside the role and the content.
_HONOURED = ("name", "tool_calls", "tool_call_id", "reasoning_content")


def message_of(message: Any, where: str) -> dict[str, Any]:
    """Canonical message for one of OpenAI's; raises InvalidInput for what it holds and cannot be honoured."""
    if not isinstance(message, dict):
        raise InvalidInput("A message is a JSON object.", 'It has "role" and "content".', where)
    if "reasoning" in message:  # the newer name of vLLM's
        message = {"reasoning_content": message["reasoning"], **message, "reasoning": None}
    for name, value in message.items():
        if name not in ("role", "content", *_HONOURED) and value not in (None, "", [], {}):
            raise InvalidInput(
                f"{name[:80]!r} of a message is not served here.", "Leave it out.", f"{where}.{name[:80]}"
            )
    calls = message.get("tool_calls")
    role, content = message.get("role"), message.get("content", None if calls else ...)
    content = "" if content is None else content  # what clients send back of an answer without text
    if isinstance(content, list):
        content = "".join(_part(part, f"{where}.content[{at}]") for at, part in enumerate(content))
    if not isinstance(role, str) or not isinstance(content, str):
        raise InvalidInput('A message needs the texts "role" and "content".', where=where)
    honoured = {name: message[name] for name in _HONOURED if message.get(name) not in (None, [])}
    if isinstance(calls, list) and calls:
        honoured["tool_calls"] = [_call(call) for call in calls]
    return {"role": _ROLES.get(role, role), "content": content, **honoured}


def _call(call: Any) -> Any:
    """A call without what clients note beside it (`parsed_arguments`, an `index`)."""
    if not isinstance(call, dict) or not isinstance(call.get("function"), dict):
        return call
    function = {name: value for name, value in call["function"].items() if name != "parsed_arguments"}
    return {**{name: value for name, value in call.items() if name != "index"}, "function": function}


def _part(part: Any, where: str) -> str:
    if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
        raise InvalidInput("Only parts of text are taken.", 'Send {"type": "text", "text": "..."}.', where)
    return str(part["text"])
