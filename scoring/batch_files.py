"""Batch endpoints: files of requests in, one row of JSON per request out.

A file is `.jsonl` (a request body a line), `.json` (one body) or `.txt` (an input a line). Rows name their file and
line, so that they can be joined with the requests whatever order Azure appends them in. An error in a request
becomes its row; an error that a retry may mend is raised, and Azure runs the whole mini-batch again.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from scoring import entry
from scoring.errors import InvalidInput

SUFFIXES = (".jsonl", ".json", ".txt")


class Item(NamedTuple):
    """One request, or the error that stands in its place."""

    file: str
    line: int
    body: str
    problem: InvalidInput | None = None


def init() -> None:
    """Load the model; raises LoadError and its kinds."""
    entry.init()


def run(mini_batch: Sequence[str]) -> list[str]:
    """The rows of these files, in their order."""
    limits = entry.metadata()["limits"]
    return score(mini_batch, entry.run, int(limits["slots"] or limits["max_batch_size"]))


def score(paths: Sequence[str], answer: Callable[[str], Any], workers: int) -> list[str]:
    """Answer each request through `answer`, which returns an HTTP response; as many run at once as a batch holds."""
    items = [item for path in paths for item in _items(Path(path))]
    with ThreadPoolExecutor(max_workers=workers) as pool:
        return list(pool.map(lambda item: _row(item, answer), items))


def _items(path: Path) -> Iterator[Item]:
    if path.suffix.lower() not in SUFFIXES:
        hint = f"Files of requests end in {', '.join(SUFFIXES)}."
        yield Item(path.name, 0, "", InvalidInput(f"{path.name} is of a kind that holds no requests.", hint))
        return
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        yield Item(path.name, 0, "", InvalidInput(f"{path.name} is not UTF-8 text.", "Write it as UTF-8."))
        return
    if path.suffix.lower() == ".json":
        yield Item(path.name, 1, _unstreamed(text))
        return
    plain = path.suffix.lower() == ".txt"
    for number, line in enumerate(text.split("\n"), start=1):
        content = line.rstrip("\r")
        if content.strip():
            yield Item(path.name, number, json.dumps({"inputs": content}) if plain else _unstreamed(content))


def _unstreamed(body: str) -> str:
    """The body with streaming turned off: a row cannot hold a stream."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return body
    return json.dumps({**value, "stream": False}) if isinstance(value, dict) and value.get("stream") else body


def _row(item: Item, answer: Callable[[str], Any]) -> str:
    place = {"file": item.file, "line": item.line}
    if item.problem:
        return _dumps(place | item.problem.to_dict())
    response = answer(item.body)
    content = json.loads(response.get_data())
    if response.status_code in (429, 503) or response.status_code >= 500:
        raise RuntimeError(f"{item.file}, line {item.line}: {content['error']['message']}")
    return _dumps(place | (content if response.status_code >= 400 else {"output": content}))


def _dumps(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False)
