"""Parameters that bind an answer to a grammar: OpenAI's `response_format`, and the fields of vLLM's clients.

`constraint_of` reads from them one constraint, as data; `scoring.generation.grammars` compiles it.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from scoring.errors import InvalidJson, InvalidParameter
from scoring.strict_json.body import read_json

#: Most characters of a schema, a grammar or an expression, OpenAI's limit for schemas; and of choices.
MOST_GRAMMAR = 120_000
MOST_CHOICES, MOST_CHOICE_CHARACTERS = 4096, 1024

Kind = Literal["json", "regex", "choice", "grammar"]
GrammarText = Annotated[str, Field(min_length=1, max_length=MOST_GRAMMAR)]
Choices = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=MOST_CHOICE_CHARACTERS)]],
    Field(min_length=1, max_length=MOST_CHOICES),
]
Schema = dict[str, Any] | GrammarText


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, populate_by_name=True)


class NamedSchema(_Strict):
    name: Annotated[str, Field(max_length=256)] | None = None
    description: Annotated[str, Field(max_length=MOST_GRAMMAR)] | None = None
    definition: dict[str, Any] | None = Field(None, alias="schema", description="A JSON schema.")
    strict: bool | None = Field(None, description="true: refuse a schema that cannot be kept to the letter.")


class ResponseFormat(_Strict):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = Field(None, description="With type json_schema.")


class StructuredOutputs(_Strict):
    json_: Schema | None = Field(None, alias="json", description="A JSON schema, or one as text.")
    regex: GrammarText | None = None
    choice: Choices | None = None
    grammar: GrammarText | None = Field(None, description="In Lark's form, or as EBNF with ::=.")
    json_object: bool | None = Field(None, description="true: any JSON object.")
    whitespace_pattern: Annotated[str, Field(max_length=256)] | None = Field(
        None, description="Of JSON, what may stand between its parts; up to 32 blanks unless given."
    )
    disable_any_whitespace: bool | None = Field(None, description="true: JSON without blanks between its parts.")


class StructuredParameters(_Strict):
    """Fields by which a request binds its answer; one of them at most."""

    response_format: ResponseFormat | None = Field(None, description="OpenAI's form: a JSON object, or by a schema.")
    structured_outputs: StructuredOutputs | None = Field(None, description="vLLM's form.")
    guided_json: Schema | None = Field(None, description="A JSON schema that the answer keeps, or one as text.")
    guided_regex: GrammarText | None = Field(None, description="An expression that the whole answer matches.")
    guided_choice: Choices | None = Field(None, description="Texts of which the answer is one.")
    guided_grammar: GrammarText | None = Field(
        None, description="A grammar of the answer, in Lark's form or as EBNF with ::=."
    )
    guided_whitespace_pattern: Annotated[str, Field(max_length=256)] | None = Field(
        None, description="With guided_json: what may stand between the parts of JSON."
    )


@dataclass(frozen=True)
class Constraint:
    """Constraint on an answer, as text; equal ones are compiled once."""

    kind: Kind
    text: str  # a schema, an expression, a JSON list of texts, or a grammar
    where: str  # in the request, for refusals
    exact: bool = True  # refuse what cannot be kept to the letter, instead of leaving it out
    blanks: str | None = None  # expression of what may stand between the parts of JSON
    frame: str = ""  # a grammar in Lark's form around it, which calls it @answer

    def __post_init__(self) -> None:
        if len(self.text) > MOST_GRAMMAR:
            raise InvalidParameter(
                f"It has {len(self.text):,} characters; a grammar has at most {MOST_GRAMMAR:,}.",
                "Send a smaller one.",
                where=self.where,
            )


def constraint_of(parameters: StructuredParameters) -> Constraint | None:
    """The constraint that parameters ask for, or None; raises InvalidParameter for more than one."""
    found = list(_asked(parameters))
    if len(found) > 1:
        first, second = (each.where.removeprefix("parameters.") for each in found[:2])
        raise InvalidParameter(
            f"{first} and {second} both bind the answer.", "Leave out one of them.", where=found[1].where
        )
    return found[0] if found else None


def _asked(p: StructuredParameters) -> Iterator[Constraint]:
    if p.response_format is not None and p.response_format.type != "text":
        yield _response_format(p.response_format)
    if p.structured_outputs is not None:
        own = p.structured_outputs
        blanks = "" if own.disable_any_whitespace else own.whitespace_pattern
        at = "parameters.structured_outputs"
        if own.json_ is not None:
            yield _json(own.json_, f"{at}.json", blanks=blanks)
        if own.json_object:
            yield _json({"type": "object"}, f"{at}.json_object", blanks=blanks)
        yield from _plain(f"{at}.", own.regex, own.choice, own.grammar)
    if p.guided_json is not None:
        yield _json(p.guided_json, "parameters.guided_json", blanks=p.guided_whitespace_pattern)
    yield from _plain("parameters.guided_", p.guided_regex, p.guided_choice, p.guided_grammar)


def _plain(prefix: str, regex: str | None, choice: list[str] | None, grammar: str | None) -> Iterator[Constraint]:
    if regex is not None:
        yield Constraint("regex", regex, f"{prefix}regex")
    if choice is not None:
        yield Constraint("choice", json.dumps(choice, ensure_ascii=False), f"{prefix}choice")
    if grammar is not None:
        yield Constraint("grammar", grammar, f"{prefix}grammar")


def _response_format(asked: ResponseFormat) -> Constraint:
    where = "parameters.response_format"
    if asked.type == "json_object":
        return _json({"type": "object"}, where)
    own = asked.json_schema
    if own is None or own.definition is None:
        raise InvalidParameter("json_schema needs a schema.", 'Send {"name": ..., "schema": {...}}.', where=where)
    return _json(own.definition, f"{where}.json_schema.schema", exact=own.strict is True)


def _json(schema: Schema, where: str, exact: bool = True, blanks: str | None = None) -> Constraint:
    if isinstance(schema, str):
        try:
            schema = read_json(schema)
        except InvalidJson as error:
            error.where = where
            raise
        if not isinstance(schema, dict):
            raise InvalidParameter("A schema is a JSON object.", where=where)
    return Constraint("json", json.dumps(schema, ensure_ascii=False), where, exact, blanks)
