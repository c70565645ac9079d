"""Interface of a style of writing tool calls, whatever stands around them; parts that all styles share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from scoring.schema.tools import Tool

#: Function, parameter, and a type that its value may have; a parameter without any is text.
Typed = frozenset[tuple[str, str, str]]
MOST_NAME = 64
#: Characters of a function's name, as a pattern.
NAME = r"[a-zA-Z0-9_.-]{1,64}"


class RunningCall(Protocol):
    """One call while its characters come; its arguments are told as JSON."""

    name: str
    raw: str
    ended: bool
    wrong: bool  # no call after all

    @property
    def id(self) -> str:
        """Id that the model gave the call itself; empty without one."""
        ...

    @property
    def told(self) -> str:
        """The part of the arguments that further characters cannot change."""
        ...

    def take(self, character: str) -> None:
        """Take the next character."""
        ...


class CallStyle(Protocol):
    """A style: how a call is read, and how a grammar writes it."""

    @property
    def opening(self) -> str:
        """Text at which a call begins; empty where its name is at once behind the mark."""
        ...

    @property
    def closing(self) -> str:
        """Text behind a call that has ended already."""
        ...

    @property
    def follow(self) -> str:
        """Text at which a further call begins behind another; empty where that is its name."""
        ...

    @property
    def whole(self) -> bool:
        """True if values are told once they are whole, rather than while they come."""
        ...

    def marks(self) -> set[str]:
        """Marks within a call that tokenizers may hold for special."""
        ...

    def new_call(self, typed: Typed) -> RunningCall:
        """A call before its first character."""
        ...

    def rules(self, at: int, tool: Tool, options: Mapping[str, Any]) -> list[str]:
        """Lark's rules of a call of this tool as `call<at>`; raises InvalidParameter for what cannot be bound."""
        ...


@dataclass(frozen=True)
class Begun:
    """Part of a style each of whose calls begins by one mark."""

    begin: str  # before the name; empty where the call's own mark is

    @property
    def opening(self) -> str:
        """Text at which a call begins; empty where its name is at once behind the mark."""
        return self.begin

    @property
    def follow(self) -> str:
        """Text at which a further call begins."""
        return self.begin


def object_of(pairs: Sequence[str], ended: bool) -> str:
    """JSON object of these pairs, as far as more of them cannot change it."""
    if not pairs:
        return "{}" if ended else ""
    return "{" + ", ".join(pairs) + ("}" if ended else "")


def arguments_schema(tool: Tool) -> dict[str, Any]:
    """Schema of a tool's arguments as that of an object; of none where it has no parameters."""
    own = tool.function.parameters
    return {"type": "object", **own} if own else {"type": "object", "properties": {}, "additionalProperties": False}
