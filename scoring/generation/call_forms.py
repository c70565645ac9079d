"""Forms in which models call tools, each known by what its chat templates say; marks of calls and thoughts."""

import re
from dataclasses import dataclass
from typing import Literal

from scoring.generation import channels
from scoring.generation.braced_calls import Braces
from scoring.generation.call_style import CallStyle
from scoring.generation.json_calls import JsonStyle
from scoring.generation.named_calls import NamedStyle
from scoring.generation.pythonic_calls import Pythonic
from scoring.generation.tagged_calls import GLM, QWEN, Tags

#: Names of forms; those of vLLM's parsers where it has one.
FormatName = Literal[
    "hermes",
    "mistral",
    "mistral_args",
    "llama3",
    "pythonic",
    "qwen_xml",
    "seed_oss",
    "glm",
    "gemma",
    "harmony",
    "deepseek_v3",
    "deepseek_v31",
    "deepseek_v32",
    "kimi_k2",
    "minimax_m2",
    "step3",
    "cohere",
    "nemotron",
    "jamba",
    "granite",
    "phi4_mini",
    "lfm2",
    "olmo3",
    "apertus",
    "longcat",
    "json",
]
Marks = tuple[str, str]  # before and after a thought
THINK: Marks = ("<think>", "</think>")
#: Marks of thoughts: most models', then Gemma 4's, Seed's, Mistral's, Cohere's and Apertus'.
_THOUGHTS: tuple[Marks, ...] = (
    THINK,
    ("<|channel>thought\n", "<channel|>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
)
#: Marks around what a model says, which are no part of it: Cohere's.
_SAID = ("<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_TEXT|>", "<|END_TEXT|>")
_PYTHONIC = re.compile(r"\[\w+\(\w+=")  # an example of a call in a template


@dataclass(frozen=True)
class ToolFormat:
    """A form: what stands around a call or all of them, and the style of a call."""

    name: FormatName
    begin: str = ""  # before each call, or before all of them
    end: str = ""
    style: CallStyle = JsonStyle()  # noqa: RUF009  # frozen
    listed: bool = False  # all calls in one list between brackets
    several: bool = False  # calls follow each other between one pair of marks
    separator: Literal["COMMA", "SEMICOLON", "LINE", "BLANKS"] = "COMMA"
    alone: bool = False  # the end of a call is that of its marks

    @property
    def marked(self) -> bool:
        """True if a call that must be made has its mark before it."""
        return bool(self.begin) and self.name != "llama3"

    @property
    def bounded(self) -> bool:
        """True if calls stand between marks, so that a grammar can tell them from text."""
        return self.marked and bool(self.end or self.alone)

    def start(self, text: str) -> int | None:
        """Index at which a call begins in the text behind a mark; -1 if none does, None if more has to come."""
        opening = self.style.opening
        begun = text.lstrip(" \n[" if self._bracketed else " \n")
        at = len(text) - len(begun)
        if not opening:
            return None if not begun else at if _begins_name(begun) else -1
        return at if begun.startswith(opening) else None if opening.startswith(begun) else -1

    @property
    def _bracketed(self) -> bool:
        """True if a bracket may stand before a call: models write lists even where their templates show none."""
        return self.style.opening != "[" and (self.listed or isinstance(self.style, JsonStyle))

    def follows(self, rest: str) -> bool:
        """Return True if the text behind a call is that of a further one."""
        follow = self.style.follow
        return self.several and bool(rest) and (rest.startswith(follow) if follow else _begins_name(rest))


def _begins_name(text: str) -> bool:
    return text[0].isalnum() or text[0] == "_"


_DEEPSEEK = ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>")
_CALL, _CALL_END, _SEP = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"
_DSML = Tags(
    '<｜DSML｜invoke name="',
    ('">',),
    '<｜DSML｜parameter name="',
    ">",
    "",
    "</｜DSML｜parameter>",
    "</｜DSML｜invoke>",
    told=True,
)
_MINIMAX = Tags('<invoke name="', ('">',), '<parameter name="', '">', "", "</parameter>", "</invoke>")
_STEP = Tags(
    '<｜tool_call_begin｜>function<｜tool_sep｜><steptml:invoke name="',
    ('">',),
    '<steptml:parameter name="',
    '">',
    "",
    "</steptml:parameter>",
    "</steptml:invoke><｜tool_call_end｜>",
)
_SEED = Tags("<function=", (">",), "<parameter=", ">", "", "</parameter>", "</function>")


def _block(name: FormatName, begin: str, end: str, style: CallStyle) -> ToolFormat:
    """A form with a pair of marks around all calls, which have marks of their own."""
    return ToolFormat(name, begin, end, style, several=True, separator="BLANKS")


def _list(name: FormatName, begin: str, end: str = "", style: CallStyle | None = None) -> ToolFormat:
    """A form with all calls in one list."""
    return ToolFormat(name, begin, end, style or JsonStyle(), listed=True, several=True)


_HARMONY = ToolFormat("harmony", several=True, separator="SEMICOLON")  # a call that must be made is JSON
_PLAIN = ToolFormat("json", several=True, separator="SEMICOLON")
_LLAMA = ToolFormat("llama3", "<|python_tag|>", "", JsonStyle("parameters"), several=True, separator="SEMICOLON")
_QWEN = ToolFormat("qwen_xml", "<tool_call>", "</tool_call>", QWEN)
_HERMES = ToolFormat("hermes", "<tool_call>", "</tool_call>")
_DEEPSEEK_V3 = _block(
    "deepseek_v3", *_DEEPSEEK, NamedStyle(f"{_CALL}function{_SEP}", "\n```json\n", f"\n```{_CALL_END}")
)
_KIMI = NamedStyle("<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>", counted=True)
_KIMI_K2 = _block("kimi_k2", "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>", _KIMI)
_MISTRAL_IDS = ToolFormat(
    "mistral_args", "[TOOL_CALLS]", "", NamedStyle("", "[ARGS]", identified="[CALL_ID]"), alone=True
)
_MISTRAL_ARGS = ToolFormat("mistral_args", "[TOOL_CALLS]", "", NamedStyle("", "[ARGS]"), alone=True)
_PYTHON = ToolFormat("pythonic", style=Pythonic(), listed=True, several=True)
_GEMMA_3 = ToolFormat("gemma", "<start_function_call>", "<end_function_call>", Braces("<escape>"))
_LFM2 = _list("lfm2", "<|tool_call_start|>", "<|tool_call_end|>", Pythonic())
_COHERE = _list("cohere", "<|START_ACTION|>", "<|END_ACTION|>", JsonStyle("parameters", "tool_name", "tool_call_id"))
_GRANITE = _list("granite", "<|tool_call|>")
_PHI = (_list("phi4_mini", "<|tool_call|>", "<|/tool_call|>"), _list("phi4_mini", "functools"))
#: Forms by texts of their templates, all of which have to stand there; the first that fits is taken.
_KNOWN: tuple[tuple[tuple[str, ...], ToolFormat], ...] = (
    (("｜DSML｜",), _block("deepseek_v32", "<｜DSML｜function_calls>", "</｜DSML｜function_calls>", _DSML)),
    ((_SEP, "```json"), _DEEPSEEK_V3),
    ((_SEP,), _block("deepseek_v31", *_DEEPSEEK, NamedStyle(_CALL, _SEP, _CALL_END))),
    (("<|tool_calls_section_begin|>",), _KIMI_K2),
    (("tool_declare<|im_middle|>",), _KIMI_K2),
    (("<minimax:tool_call>",), _block("minimax_m2", "<minimax:tool_call>", "</minimax:tool_call>", _MINIMAX)),
    (("<seed:tool_call>",), ToolFormat("seed_oss", "<seed:tool_call>", "</seed:tool_call>", _SEED)),
    (("steptml:invoke",), _block("step3", "<｜tool_calls_begin｜>", "<｜tool_calls_end｜>", _STEP)),
    (("<longcat_tool_call>",), ToolFormat("longcat", "<longcat_tool_call>", "</longcat_tool_call>")),
    ((QWEN.begin, QWEN.key), _QWEN),
    ((GLM.key,), ToolFormat("glm", "<tool_call>", "</tool_call>", GLM, alone=True)),
    (("[TOOL_CALLS]", "[CALL_ID]"), _MISTRAL_IDS),
    (("[TOOL_CALLS]", "[ARGS]"), _MISTRAL_ARGS),
    ((QWEN.begin,), _PLAIN),  # names outside the JSON, arguments within it
    (("<|START_ACTION|>",), _COHERE),
    (("<TOOLCALL>",), _list("nemotron", "<TOOLCALL>", "</TOOLCALL>")),
    (("<tool_calls>",), _list("jamba", "<tool_calls>", "</tool_calls>")),
    (("<|tool_call_start|>",), _LFM2),
    (("<|tool_list_start|>",), _LFM2),
    (
        ("<function_calls>",),
        ToolFormat("olmo3", "<function_calls>", "</function_calls>", Pythonic(False), several=True, separator="LINE"),
    ),
    (("<|tools_prefix|>",), _list("apertus", "<|tools_prefix|>", "<|tools_suffix|>", NamedStyle('{"', '": ', "}"))),
    (("<|/tool_call|>",), _PHI[0]),
    (("<|tool_call|>",), _GRANITE),
    (("functools[",), _PHI[1]),
    (("<|tool_call>",), ToolFormat("gemma", "<|tool_call>", "<tool_call|>", Braces('<|"|>'))),
    (
        ("<start_function_call>",),
        ToolFormat("gemma", "<start_function_call>", "<end_function_call>", Braces("<escape>")),
    ),
    (("<tool_call>",), _HERMES),
    (("[TOOL_CALLS]",), _list("mistral", "[TOOL_CALLS]")),
    (("<|python_tag|>",), _LLAMA),
)


def tool_format(template: str) -> ToolFormat | None:
    """The form that a chat template teaches, JSON where it teaches no known one; None if it takes no tools."""
    if not re.search(r"\btools\b", template):
        return None
    if channels.speaks_in_channels(template):
        return _HARMONY
    if form := next((form for texts, form in _KNOWN if all(text in template for text in texts)), None):
        return form
    if _PYTHONIC.search(template):
        return _PYTHON
    return _LLAMA if "ipython" in template else _PLAIN


def thought_marks(template: str) -> Marks | None:
    """Marks between which a chat template knows thoughts; None if it knows none."""
    return next((marks for marks in _THOUGHTS if marks[1] in template), None)


def marks_as_text(template: str) -> set[str]:
    """Marks of a template's forms, which answers need as text although tokenizers may hold them for special."""
    if channels.speaks_in_channels(template):
        return set(channels.MARKS)
    found = {mark.removesuffix("thought\n") for mark in thought_marks(template) or ()} | marks_of_speech(template)
    if form := tool_format(template):
        found |= {form.begin, form.end} | form.style.marks()
    return found - {""}


def marks_of_speech(template: str) -> set[str]:
    """Marks around what a model says, which are left out of it even where a tokenizer has them as text."""
    return {mark for mark in _SAID if mark in template}
