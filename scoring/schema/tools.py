"""Functions that a conversation may call, OpenAI's form; and messages that call them and bring their answers."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from scoring.schema.structured import MOST_GRAMMAR

MOST_TOOLS = 128
Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
Id = Annotated[str, Field(max_length=256)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Function(_Strict):
    name: Name
    description: Annotated[str, Field(max_length=MOST_GRAMMAR)] | None = None
    parameters: dict[str, Any] | None = Field(None, description="A JSON schema of the arguments; none: no arguments.")
    strict: bool | None = Field(None, description="true: refuse a schema that cannot be kept to the letter.")


class Tool(_Strict):
    type: Literal["function"]
    function: Function


class NamedFunction(_Strict):
    name: Name


class ToolChoice(_Strict):
    type: Literal["function"] = "function"  # which the Hub's client leaves out
    function: NamedFunction


class CalledFunction(_Strict):
    name: Name
    arguments: Annotated[str, Field(max_length=2**20)] | dict[str, Any] = Field(
        description="JSON, as text or as it is."
    )


class ToolCall(_Strict):
    id: Id | None = None
    type: Literal["function"] = "function"
    function: CalledFunction


class ToolParameters(_Strict):
    """Fields of a conversation with tools, and of its template."""

    tools: Annotated[list[Tool], Field(max_length=MOST_TOOLS)] | None = Field(
        None, description="Functions that the answer may call, for models whose chat template takes them."
    )
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = Field(
        None, description="Whether the answer calls them, must call one, or this one; auto unless given."
    )
    parallel_tool_calls: bool | None = Field(None, description="false: one call at most, where one must be made.")
    chat_template_kwargs: Annotated[dict[Name, Any], Field(max_length=32)] | None = Field(
        None, description="Variables of the chat template, such as enable_thinking."
    )
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = Field(
        None,
        description="How long the model thinks: told to a chat template that knows efforts, else whether it thinks at "
        "all; none: not.",
    )
