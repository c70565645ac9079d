"""OpenAI's `tool_choice` of the type allowed_tools: of the tools that were sent, some may be called."""

from typing import Any

from scoring.errors import InvalidParameter

_FORM = (
    '{"type": "allowed_tools", "allowed_tools": {"mode": "auto" or "required", "tools": [{"type": "function", ...}]}}'
)


def offering_allowed(sent: dict[str, Any]) -> dict[str, Any]:
    """The body, or one that offers the allowed tools alone; raises InvalidParameter for a tool that was not sent."""
    choice = sent.get("tool_choice")
    if not isinstance(choice, dict) or choice.get("type") != "allowed_tools":
        return sent
    told = choice.get("allowed_tools")
    mode, some = (told.get("mode"), told.get("tools")) if isinstance(told, dict) else (None, None)
    if mode not in ("auto", "required") or not isinstance(some, list) or not some:
        raise InvalidParameter("tool_choice allows no tools.", f"Send {_FORM}.", "tool_choice")
    tools = sent.get("tools")
    by_name = {_name(tool): tool for tool in (tools if isinstance(tools, list) else [])}
    names = [_name(tool) for tool in some]
    for name in names:
        if name is None or name not in by_name:
            raise InvalidParameter(f"tool_choice allows {name!r}, which is none of the tools.", where="tool_choice")
    return {**sent, "tools": [tool for name, tool in by_name.items() if name in names], "tool_choice": mode}


def _name(tool: Any) -> str | None:
    """Name of the function that a tool is, None for anything else."""
    function = tool.get("function") if isinstance(tool, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else None
