"""Marks in the rules of grammars as the tokens that models write them by: spelled in letters they are other tokens.

A grammar of llguidance allows for a text the tokens of its letters, of which a mark's own is mostly none.
"""

import json
import re
from collections.abc import Collection, Mapping
from typing import Any

Tokens = Mapping[str, int]  # of marks

_ANY = r"(.|\n)*"
_LITERAL = re.compile(r'"(?:[^"\\]|\\.)*"')
_UNTIL = re.compile(rf"(\w+)\[suffix=({_LITERAL.pattern})\]: /{re.escape(_ANY)}/")
_TERMINAL = re.compile(r"[A-Z]")  # begins the name of one, in which no tokens may stand
_JSON = re.compile(r"%json .*")


def mark_tokens(tokenizer: Any, marks: Collection[str], ends: Collection[int]) -> dict[str, int]:
    """Tokens of those marks that have one of their own, special or not, which does not end an answer."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return {text.content: token for token, text in added.items() if text.content in marks and token not in ends}


def free_text(end: str, tokens: Tokens) -> str:
    """Lark's expression of any text; of one without the first mark of `end`, if that is a token."""
    found = _first(end, tokens)
    return f"/{_ANY}/" if found is None else _without(found[0])


def by_tokens(rules: str, tokens: Tokens) -> str:
    """The same rules of Lark with each mark that has a token as that token, also where one ends a free text.

    Schemas stay as they are.
    """
    return "\n".join(_line(line, tokens) for line in rules.split("\n")) if tokens else rules


def _line(line: str, tokens: Tokens) -> str:
    if until := _UNTIL.fullmatch(line):
        return _until(until[1], json.loads(until[2]), tokens) or line
    if _TERMINAL.match(line):
        return line
    schema = _JSON.search(line)
    end = schema.start() if schema else len(line)
    return _LITERAL.sub(lambda found: _terms(found[0], tokens), line[:end]) + line[end:]


def _until(name: str, end: str, tokens: Tokens) -> str:
    """Rules of any text up to this end, and it; empty if that has no mark with a token."""
    found = _first(end, tokens)
    if found is None:
        return ""
    before, behind = end[: found.start()], end[found.end() :]
    free = f"/{_ANY}{_escaped(before)}/ & {_without(found[0]).partition(' & ')[2]}"
    rest = f" {_terms(_quoted(behind), tokens)}" if behind else ""
    return f"{name}: {name.upper()} <[{tokens[found[0]]}]>{rest}\n{name.upper()}: {free}"


def _without(mark: str) -> str:
    return f"/{_ANY}/ & ~/{_ANY}{_escaped(mark)}{_ANY}/"


def _terms(literal: str, tokens: Tokens) -> str:
    """Terms of a text in quotes: of the texts between its marks, and their tokens."""
    text, terms = json.loads(literal), []
    while found := _first(text, tokens):
        terms += [_quoted(text[: found.start()])] if found.start() else []
        terms.append(f"<[{tokens[found[0]]}]>")
        text = text[found.end() :]
    if not terms:
        return literal
    terms += [_quoted(text)] if text else []
    return terms[0] if len(terms) == 1 else f"({' '.join(terms)})"


def _first(text: str, tokens: Tokens) -> re.Match[str] | None:
    """The first mark in a text, the longest of those that begin there."""
    marks = sorted(tokens, key=len, reverse=True)
    return re.search("|".join(map(re.escape, marks)), text) if marks else None


def _escaped(text: str) -> str:
    """Expression of a text within Lark's slashes."""
    return re.escape(text).replace("/", r"\/").replace("\\\n", r"\n")


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
