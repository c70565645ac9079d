"""Answers for people: texts as they are, labels and spans in tables, vectors by their likeness, images as files."""

import base64
import binascii
import math
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from rich.console import Console

from mii_azure.cli.report import print_table, table
from mii_azure.cli.shared import print_json, print_text
from mii_azure.errors import NotWritten

_TEXTS = ("generated_text", "summary_text", "translation_text")
_IMAGE = "generated_image"
#: Columns of an answer of each form, by the keys that it has; the first form whose keys are all there.
_ROWS = (
    (("answer", "score"), ("answer", "score", "start", "end")),
    (("entity_group",), ("word", "entity_group", "score", "start", "end")),
    (("entity",), ("word", "entity", "score", "start", "end")),
    (("token_str", "sequence"), ("token_str", "score", "sequence")),
    (("label", "score"), ("label", "score")),
    (("index", "score", "text"), ("index", "score", "text")),
    (("index", "score"), ("index", "score")),
)
_SHOWN = 4  # numbers of a vector


def show_answer(console: Console, answer: Any, folder: Path) -> None:
    """Print an answer; images are written to `folder`, and an answer of unknown form is printed as JSON.

    Raises NotWritten where an image cannot be written.
    """
    entries = answer if isinstance(answer, list) else [answer]
    if vectors := _vectors(answer):
        _show_vectors(console, vectors)
    elif all(isinstance(entry, list) and entry for entry in entries) and entries and _known(chain(*entries)):
        for number, entry in enumerate(entries, 1):
            print_text(f"{number}.\n")
            show_answer(console, entry, folder)
    elif not entries or not _known(entries):
        print_json(answer)
    elif _IMAGE in entries[0]:
        for entry in entries:
            _write_image(console, entry, folder)
    elif text := next((key for key in _TEXTS if key in entries[0]), ""):
        for entry in entries:
            print_text(_text(entry[text]).rstrip("\n") + "\n")
    else:
        _show_rows(console, entries)


def _known(entries: Iterable[Any]) -> bool:
    return all(isinstance(entry, dict) and _form(entry) for entry in entries)


def _form(entry: dict[str, Any]) -> tuple[str, ...]:
    """Columns that an entry is shown in; empty for one that is not known."""
    if isinstance(entry.get(_IMAGE), str):
        return (_IMAGE,)
    if any(key in entry for key in _TEXTS) and not entry.get("tool_calls") and not entry.get("details"):
        return ("text",)
    return next((columns for keys, columns in _ROWS if all(key in entry for key in keys)), ())


def _text(value: Any) -> str:
    """Text of an answer; of a conversation its last message."""
    if isinstance(value, list) and value and isinstance(value[-1], dict):
        return str(value[-1].get("content") or "")
    return str(value)


def _show_rows(console: Console, entries: Sequence[dict[str, Any]]) -> None:
    columns = _form(entries[0])
    made = table(*columns, named=len(columns) - ("sequence" in columns))
    for entry in entries:
        cells = [entry.get(column, "") for column in columns]
        made.add_row(*(f"{cell:.4f}" if isinstance(cell, float) else str(cell) for cell in cells))
    print_table(console, made)


def _vectors(answer: Any) -> list[list[float]]:
    """The vectors that an answer is, one a text or a token; none if it is something else."""
    found = answer
    while isinstance(found, list) and len(found) == 1 and isinstance(found[0], list):
        found = found[0]
    found = [found] if _is_vector(found) else found
    return found if isinstance(found, list) and found and all(map(_is_vector, found)) else []


def _is_vector(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, int | float) for each in value)


def _show_vectors(console: Console, vectors: list[list[float]]) -> None:
    """Print the beginning of each vector, and how alike each two are."""
    for number, vector in enumerate(vectors, 1):
        begun = ", ".join(f"{value:.4f}" for value in vector[:_SHOWN])
        more = ", ..." if len(vector) > _SHOWN else ""
        console.print(f"{number}. {len(vector)} numbers, length {_norm(vector):.3f}: {begun}{more}", soft_wrap=True)
    if len(vectors) < 2 or len({len(vector) for vector in vectors}) > 1:
        return
    made = table("cosine", *(str(number) for number in range(1, len(vectors) + 1)))
    for number, vector in enumerate(vectors, 1):
        made.add_row(str(number), *(f"{_cosine(vector, other):.3f}" for other in vectors))
    print_table(console, made)


def _norm(vector: Sequence[float]) -> float:
    return math.sqrt(sum(value * value for value in vector))


def _cosine(one: Sequence[float], other: Sequence[float]) -> float:
    return sum(map(float.__mul__, map(float, one), map(float, other))) / ((_norm(one) * _norm(other)) or 1.0)


def _write_image(console: Console, entry: dict[str, Any], folder: Path) -> None:
    name = f"image-{entry['seed']}" if isinstance(entry.get("seed"), int) else "image"
    number, path = 1, folder / f"{name}.png"
    while path.exists():
        number, path = number + 1, folder / f"{name}-{number + 1}.png"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(entry[_IMAGE], validate=True))
    except OSError as error:
        raise NotWritten(
            f"{path} cannot be written: {error.strerror}.", "Choose another --output, or --json."
        ) from None
    except binascii.Error:
        raise NotWritten("The answer's image is not base64.", "See the answer with --json.") from None
    marked = ", black: its content was marked" if entry.get("nsfw_content_detected") else ""
    console.print(f"wrote {path}{marked}", soft_wrap=True)
