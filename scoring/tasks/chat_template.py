"""Conversations as prompts, through the tokenizer's chat template."""

import inspect
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from jinja2 import Environment, TemplateSyntaxError, meta
from transformers import PreTrainedTokenizerBase

from scoring.errors import InvalidInput, InvalidParameter, RequestTimeout
from scoring.limits.deadline import interrupting
from scoring.schema.requests import ConversationalParameters, Message
from scoring.schema.tools import Tool

EFFORT = "reasoning_effort"
_SWITCHES = ("enable_thinking", "thinking")  # variables of templates that turn a thought on and off
_GENERATION = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")  # marks of training data, unknown to Jinja itself
_OWN = {"messages", "tools", "documents"}  # variables of a template that a request sets otherwise, or not at all


@dataclass(frozen=True)
class ThoughtControls:
    """Means of a chat template to steer the model's thought."""

    thinks: bool  # it knows thoughts
    switch: str | None  # its variable that turns them on and off
    efforts: bool  # it tells the model how long to think

    @classmethod
    def of_template(cls, template: str, thinks: bool) -> "ThoughtControls":
        """Controls that a template's variables are."""
        names = _variables(template)
        return cls(thinks, next((name for name in _SWITCHES if name in names), None), EFFORT in names)

    def variables(self, parameters: ConversationalParameters) -> dict[str, Any]:
        """Variables of the template as a request asks; raises InvalidParameter for an effort that cannot be made.

        Those that it sets itself hold.
        """
        given, effort = parameters.chat_template_kwargs or {}, parameters.reasoning_effort
        if effort is None:
            return given
        made: dict[str, Any] = {self.switch: effort != "none"} if self.switch else {}
        if self.efforts and (effort != "none" or not self.switch):
            made[EFFORT] = effort
        if not made and self.thinks and effort == "none":
            raise InvalidParameter(
                "The model's chat template cannot turn its thought off.", "Leave it out.", where=f"parameters.{EFFORT}"
            )
        if not made and not self.thinks and effort != "none":
            raise InvalidParameter(
                "The model's chat template knows no thought.",
                'Leave it out, or send "none".',
                where=f"parameters.{EFFORT}",
            )
        return {**made, **given}

    def off(self, variables: Mapping[str, Any]) -> bool:
        """Return True if the variables turn the thought off."""
        return self.switch is not None and variables.get(self.switch) is False


def _variables(template: str) -> set[str]:
    """Names that a template reads and does not set itself; none of one that Jinja cannot read."""
    jinja = Environment(extensions=["jinja2.ext.loopcontrols"], autoescape=False)  # noqa: S701  # read, never rendered
    try:
        return meta.find_undeclared_variables(jinja.parse(_GENERATION.sub("", template)))
    except TemplateSyntaxError:
        return set()


def render(
    tokenizer: Any,
    value: Sequence[Message],
    tools: Sequence[Tool],
    variables: Mapping[str, Any],
    item: int,
    going_on: bool,
    begun: bool | None = None,
) -> str:
    """The prompt of a conversation, with its last message continued, or an answer `begun` unless said otherwise.

    Raises InvalidInput if the template refuses it, InvalidParameter for a variable that is no template's.
    """
    if taken := sorted(set(variables) & (_OWN | _arguments())):
        raise InvalidParameter(
            f"{taken[0]!r} is no variable of a chat template.",
            "Leave it out.",
            where=f"parameters.chat_template_kwargs.{taken[0]}",
        )
    written = {"tokenize": False, "continue_final_message": going_on, **variables}
    written |= {"tools": [_tool(tool) for tool in tools] or None}
    written |= {"add_generation_prompt": not going_on if begun is None else begun}
    try:
        with interrupting():
            return _rendered(tokenizer, value, written)
    except RequestTimeout:
        raise
    except Exception as error:  # a template may refuse messages by raising anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise InvalidInput(
            f"The model's chat template refuses the messages: {reason}.",
            "Most templates want user and assistant in turn, a system message only at the beginning.",
            where=f"inputs[{item}]",
        ) from error


def _rendered(tokenizer: Any, value: Sequence[Message], written: Mapping[str, Any]) -> str:
    """The template's text; arguments of calls are JSON to it, and their text where it adds texts to them."""
    try:
        return str(tokenizer.apply_chat_template([_message(message) for message in value], **written))
    except TypeError:
        if not any(message.tool_calls for message in value):
            raise
        told = [_message(message, as_text=True) for message in value]
        return str(tokenizer.apply_chat_template(told, **written))


def continues(value: Sequence[Message], p: ConversationalParameters) -> bool:
    """Return True if a conversation's last message is to be continued: as asked, else if it is the assistant's own.

    Raises InvalidParameter if it is asked to be both continued and answered.
    """
    if p.continue_final_message and p.add_generation_prompt:
        raise InvalidParameter(
            "A message that is continued has no answer behind it.",
            'Leave out "add_generation_prompt".',
            where="parameters.continue_final_message",
        )
    if p.continue_final_message is not None:
        return p.continue_final_message
    return value[-1].role == "assistant" and not value[-1].tool_calls and not p.add_generation_prompt


def _message(message: Message, as_text: bool = False) -> dict[str, Any]:
    """A message as templates take it: the arguments of calls as JSON, or as text for those that want it."""
    told = {"content": "", **message.model_dump(exclude_none=True, exclude={"tool_calls"})}
    calls = []
    for call in message.tool_calls or ():
        arguments = _arguments_of(call.function.arguments)
        if as_text and not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        function = {"name": call.function.name, "arguments": arguments}
        calls.append({"id": call.id or "", "type": "function", "function": function})
    return {**told, "tool_calls": calls} if calls else told


def _arguments_of(arguments: str | dict[str, Any]) -> Any:
    """Arguments of a call as JSON; text that is not JSON stays as the model wrote it."""
    if not isinstance(arguments, str):
        return arguments
    try:
        return json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        return arguments


def _tool(tool: Tool) -> dict[str, Any]:
    return tool.model_dump(exclude_none=True, exclude={"function": {"strict"}})


@lru_cache(maxsize=1)
def _arguments() -> frozenset[str]:
    return frozenset(inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters)
