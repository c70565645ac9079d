"""Forms in which models call tools, recognised from the chat template; and the grammars of calls that must be made."""

import json
from collections.abc import Sequence
from dataclasses import replace

from scoring.generation.call_forms import Marks, ToolFormat
from scoring.generation.call_style import arguments_schema
from scoring.generation.mark_tokens import Tokens, by_tokens, free_text
from scoring.schema.structured import Constraint
from scoring.schema.tools import Tool

_PLACE = "parameters.tools"
_MOST_CALLS = 16  # of one answer that must call: a model that is lost would go on until its tokens end
_MORE = f"{{0,{_MOST_CALLS - 1}}}"
_BLANKS = "BLANKS: /[ \\n]{0,2}/"
_SEPARATORS = ('COMMA: ", "', 'SEMICOLON: "; "', 'LINE: "\\n"')


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


def framed(constraint: Constraint, thought: str, tokens: Tokens) -> Constraint:
    """The constraint of an answer that a thought may precede."""
    frame = by_tokens(f"start: thought @answer\n{thought}", tokens)
    return replace(constraint, frame=frame) if thought else constraint


def must_call(form: ToolFormat, tools: Sequence[Tool], several: bool, thought: str, tokens: Tokens) -> Constraint:
    """The constraint of an answer that calls one of the tools, or several times."""
    return Constraint("grammar", by_tokens(_calling(form, tools, several, thought, "called"), tokens), _PLACE)


def call_or(
    own: Constraint, form: ToolFormat, tools: Sequence[Tool], several: bool, thought: str, tokens: Tokens
) -> Constraint:
    """The constraint of an answer that either keeps its own, or calls tools."""
    frame = _calling(form, tools, several, thought, "(@answer | called)")
    return replace(own, frame=by_tokens(frame, tokens))


def _calling(form: ToolFormat, tools: Sequence[Tool], several: bool, thought: str, answer: str) -> str:
    """Lark's rules of an answer in which calls are `called`."""
    calls = f"marked (BLANKS marked){_MORE}" if several and form.marked and not form.several else "marked"
    if not form.marked:
        calls = _listed(form, several)
    start = f"start: {'thought ' if thought else ''}{answer}"
    marked = f"marked: {_quoted(form.begin)} {_behind_mark(form, several)}" if form.marked else ""
    return "\n".join([start, f"called: {calls}", marked, *_calls(form, tools), *_SEPARATORS, thought])


def _listed(form: ToolFormat, several: bool) -> str:
    """Terms of calls that follow each other between one pair of marks."""
    calls = f"call ({form.separator} call){_MORE}" if several and form.several else "call"
    return f'"[" {calls} "]"' if form.listed else calls


def _behind_mark(form: ToolFormat, several: bool) -> str:
    """Terms that stand behind the mark of a call, or of several."""
    if not form.end and form.alone:
        return "call"
    return f"BLANKS {_listed(form, several)}" + (f" BLANKS {_quoted(form.end)}" if form.end else "")


def may_call(form: ToolFormat, tools: Sequence[Tool], thought: str, tokens: Tokens) -> Constraint:
    """The constraint of an answer whose calls, where it makes any between its marks, are right."""
    first = "thought " if thought else ""
    rules = [
        f"start: {first}(said {_behind_mark(form, True)})* TEXT",
        f"TEXT: {free_text(form.begin, tokens)}",
        f"said[suffix={_quoted(form.begin)}]: /(.|\\n)*/",
    ]
    text = "\n".join([*rules, *_calls(form, tools), *_SEPARATORS, thought])
    return Constraint("grammar", by_tokens(text, tokens), _PLACE)


def argument_schemas(tools: Sequence[Tool]) -> list[Constraint]:
    """The schemas of the tools' arguments as constraints of their own, by which a fault is placed."""
    return [
        Constraint(
            "json", json.dumps(arguments_schema(tool)), f"parameters.tools[{at}].function.parameters", _exact(tool)
        )
        for at, tool in enumerate(tools)
    ]


def _calls(form: ToolFormat, tools: Sequence[Tool]) -> list[str]:
    rules = [f"call: {' | '.join(f'call{at}' for at in range(len(tools)))}", _BLANKS]
    for at, tool in enumerate(tools):
        options = {"lenient": not _exact(tool), "coerce_one_of": not _exact(tool)}
        rules += form.style.rules(at, tool, {"whitespace_pattern": "[ \\n]{1,16}", **options})
    return rules


def _exact(tool: Tool) -> bool:
    return tool.function.strict is True


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
