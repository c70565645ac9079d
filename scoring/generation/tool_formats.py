"""Forms in which models call tools, recognised from the chat template; and the grammars of calls that must be made."""

import json
import re
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any, Literal

from scoring.generation import braced_calls, channels, tagged_calls
from scoring.generation.tagged_calls import GLM, QWEN, Tags
from scoring.schema.structured import Constraint
from scoring.schema.tools import Tool

FormatName = Literal["hermes", "mistral", "llama3", "qwen_xml", "glm", "gemma", "harmony", "json"]
Marks = tuple[str, str]  # before and after a thought
THINK: Marks = ("<think>", "</think>")
_CHANNEL: Marks = ("<|channel>thought\n", "<channel|>")  # Gemma 4's
_MOST_CALLS = 16  # of one answer that must call: a model that is lost would go on until its tokens end
_BLANKS = "BLANKS: /[ \\n]{0,2}/"
_NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True)
class ToolFormat:
    """A form: what stands around a call or all of them, and the key of a call's arguments."""

    name: FormatName
    begin: str = ""  # before each call, or before the list of them
    end: str = ""
    key: str = "arguments"
    listed: bool = False  # all calls in one JSON list
    tags: Tags | None = None  # of a call that is no JSON
    quote: str = ""  # around texts of a call that is name{key:value}

    @property
    def opening(self) -> str:
        """Text at which a call begins; empty where its name is at once behind the mark."""
        if self.quote:
            return braced_calls.OPENING
        return "{" if self.tags is None else self.tags.begin

    def start(self, text: str) -> int | None:
        """Index at which a call begins in the text behind a mark; -1 if none does, None if more has to come."""
        begun = text.lstrip(" \n[" if self.tags is None else " \n")
        at = len(text) - len(begun)
        if not self.opening:
            return None if not begun else at if begun[0].isalnum() or begun[0] == "_" else -1
        return at if begun.startswith(self.opening) else None if self.opening.startswith(begun) else -1


_FORMATS = (
    ToolFormat("hermes", "<tool_call>", "</tool_call>"),
    ToolFormat("mistral", "[TOOL_CALLS]", listed=True),
    ToolFormat("llama3", "<|python_tag|>", key="parameters"),
)
_PLAIN = ToolFormat("json")
_HARMONY = ToolFormat("harmony")  # a call that must be made is JSON, others stand in channels
_QWEN = ToolFormat("qwen_xml", "<tool_call>", "</tool_call>", tags=QWEN)
_GEMMA = (
    ToolFormat("gemma", "<|tool_call>", "<tool_call|>", quote='<|"|>'),
    ToolFormat("gemma", "<start_function_call>", "<end_function_call>", quote="<escape>"),
)
_GLM = ToolFormat("glm", "<tool_call>", "</tool_call>", tags=GLM)


def tool_format(template: str) -> ToolFormat | None:
    """The form that a chat template teaches, JSON where it teaches no known one; None if it takes no tools."""
    if not re.search(r"\btools\b", template):
        return None
    if channels.speaks_in_channels(template):
        return _HARMONY
    if QWEN.begin in template and QWEN.key in template:
        return _QWEN
    if GLM.key in template:
        return _GLM
    if QWEN.begin in template or "[ARGS]" in template:  # names outside the JSON
        return _PLAIN
    if known := [each for each in (*_GEMMA, *_FORMATS) if each.begin in template]:
        return known[0]
    return _FORMATS[2] if "ipython" in template else _PLAIN


def thought_marks(template: str) -> Marks | None:
    """Marks between which a chat template knows thoughts; None if it knows none."""
    return next((marks for marks in (THINK, _CHANNEL) if marks[1] in template), None)


def marks_as_text(template: str) -> set[str]:
    """Marks of a template's forms, which answers need as text although tokenizers may hold them for special."""
    if channels.speaks_in_channels(template):
        return set(channels.MARKS)
    found = {mark.removesuffix("thought\n") for mark in thought_marks(template) or ()}
    if form := tool_format(template):
        found |= {form.begin, form.end, form.quote}
        found |= {text for text in astuple(form.tags) if isinstance(text, str)} if form.tags else set()
    return found - {""}


def thought_rule(prompt: str, marks: Marks | None) -> str:
    """Lark's rules of the thought that may come first after a prompt; empty if none may.

    Defines `thought`, to be used before whatever follows.
    """
    if marks is None or prompt.rstrip().endswith(marks[1]):
        return ""
    inner = f"inner[suffix={_quoted(marks[1])}]: /(.|\\n)*/\nGAP: /[ \\n]{{0,4}}/"
    if prompt.rstrip().endswith(marks[0].rstrip()):
        return f"thought: inner GAP\n{inner}"
    return f"thought: ({_quoted(marks[0])} inner GAP)?\n{inner}"


def framed(constraint: Constraint, thought: str) -> Constraint:
    """The constraint of an answer that a thought may precede."""
    return replace(constraint, frame=f"start: thought @answer\n{thought}") if thought else constraint


def must_call(form: ToolFormat, tools: Sequence[Tool], several: bool, thought: str) -> Constraint:
    """The constraint of an answer that calls one of the tools, or several times."""
    return Constraint("grammar", _calling(form, tools, several, thought, "called"), "parameters.tools")


def call_or(own: Constraint, form: ToolFormat, tools: Sequence[Tool], several: bool, thought: str) -> Constraint:
    """The constraint of an answer that either keeps its own, or calls tools."""
    return replace(own, frame=_calling(form, tools, several, thought, "(@answer | called)"))


def _calling(form: ToolFormat, tools: Sequence[Tool], several: bool, thought: str, answer: str) -> str:
    """Lark's rules of an answer in which calls are `called`."""
    calls = "marked" if form.end else "call"
    if several:
        between = "COMMA" if form.listed else "BLANKS" if form.end else "SEMICOLON"
        calls += f" ({between} {calls}){{0,{_MOST_CALLS - 1}}}"
    if form.listed:
        calls = f'"[" {calls} "]"'
    start = f"start: {'thought ' if thought else ''}{answer}"
    rules = [start, f"called: {calls}", *_calls(form, tools), 'COMMA: ", "', 'SEMICOLON: "; "', thought]
    return "\n".join(rules)


def may_call(form: ToolFormat, tools: Sequence[Tool], thought: str) -> Constraint:
    """The constraint of an answer whose calls, where it makes any between its marks, are right."""
    first = "thought " if thought else ""
    rules = [
        f"start: {first}(said BLANKS call BLANKS {_quoted(form.end)})* TEXT",
        "TEXT: /(.|\\n)*/",
        f"said[lazy]: TEXT {_quoted(form.begin)}",
    ]
    own = [rule for rule in _calls(form, tools) if not rule.startswith("marked")]
    return Constraint("grammar", "\n".join([*rules, *own, thought]), "parameters.tools")


def argument_schemas(tools: Sequence[Tool]) -> list[Constraint]:
    """The schemas of the tools' arguments as constraints of their own, by which a fault is placed."""
    return [
        Constraint("json", json.dumps(_schema(tool)), f"parameters.tools[{at}].function.parameters", _exact(tool))
        for at, tool in enumerate(tools)
    ]


def _calls(form: ToolFormat, tools: Sequence[Tool]) -> list[str]:
    rules = [f"call: {' | '.join(f'call{at}' for at in range(len(tools)))}", _BLANKS]
    if form.end:
        rules.append(f"marked: {_quoted(form.begin)} BLANKS call BLANKS {_quoted(form.end)}")
    for at, tool in enumerate(tools):
        options = {"lenient": not _exact(tool), "coerce_one_of": not _exact(tool)}
        guidance = {"whitespace_pattern": "[ \\n]{1,16}", **options}
        if form.quote:
            rules += braced_calls.rules(form.quote, at, tool, guidance)
            continue
        if form.tags is not None:
            rules += tagged_calls.rules(form.tags, at, tool, guidance)
            continue
        name = f'{_quoted(json.dumps("name"))} ":" BLANKS {_quoted(json.dumps(tool.function.name))} BLANKS "," BLANKS'
        rules.append(f'call{at}: "{{" BLANKS {name} {_quoted(json.dumps(form.key))} ":" BLANKS given{at} BLANKS "}}"')
        guided = {**_schema(tool), "x-guidance": guidance}
        rules.append(f"given{at}: %json {json.dumps(guided)}")
    return rules


def _schema(tool: Tool) -> dict[str, Any]:
    own = tool.function.parameters
    return {"type": "object", **own} if own else _NO_ARGUMENTS


def _exact(tool: Tool) -> bool:
    return tool.function.strict is True


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
