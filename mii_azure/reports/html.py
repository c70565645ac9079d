"""HTML of reports, built as a tree, so that every text is escaped: one file with its style, no script, no source."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from local_runner.telemetry.terminal import escaped
from mii_azure.errors import NotWritten

Node = ElementTree.Element
Child = Node | str | None

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_STYLE = (Path(__file__).parent / "report.css").read_text("utf-8")


def el(tag: str, *children: Child | Iterable[Child], **attributes: Any) -> Node:
    """Element; `class_` stands for class, underscores for hyphens, and attributes that are None are left out."""
    named = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items() if value is not None}
    made = ElementTree.Element(tag, {name: _shown(value) for name, value in named.items()})
    for child in _flat(children):
        if isinstance(child, str):
            _append_text(made, escaped(child))
        else:
            made.append(child)
    return made


def _shown(value: Any) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else escaped(str(value))


def _flat(children: Iterable[Any]) -> Iterable[Node | str]:
    for child in children:
        if child is None:
            continue
        if isinstance(child, str) or ElementTree.iselement(child):
            yield child
        else:
            yield from _flat(child)


def _append_text(node: Node, text: str) -> None:
    if len(node):
        node[-1].tail = (node[-1].tail or "") + text
    else:
        node.text = (node.text or "") + text


def table(heads: Sequence[str], rows: Iterable[Sequence[Child]], numbers: Sequence[int] = ()) -> Node:
    """Table; columns in `numbers` are aligned as numbers."""

    def cell(tag: str, place: int, content: Child) -> Node:
        return el(tag, content, class_="number" if place in numbers else None, scope="col" if tag == "th" else None)

    head = el("tr", [cell("th", place, text) for place, text in enumerate(heads)])
    body = [el("tr", [cell("td", place, content) for place, content in enumerate(row)]) for row in rows]
    return el("div", el("table", el("thead", head), el("tbody", body)), class_="scroll")


def section(title: str, *content: Child | Iterable[Child]) -> Node:
    """Section with a heading."""
    return el("section", el("h2", title), *content)


def figures(pairs: Iterable[tuple[str, str]]) -> Node:
    """Headline figures with what they are."""
    return el("dl", [el("div", el("dt", name), el("dd", value)) for name, value in pairs], class_="figures")


def write(file: Path, title: str, about: str, *sections: Node) -> None:
    """Write a report, in place of an earlier one; folders above it are made. Raises NotWritten."""
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("title", title),
    )
    style = ElementTree.SubElement(head, "style")
    style.text = _STYLE
    body = el("body", el("header", el("h1", title), el("p", about)), el("main", sections))
    text = ElementTree.tostring(el("html", head, body, lang="en"), encoding="unicode", method="html")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"<!doctype html>\n{text}\n", encoding="utf-8")
    except OSError as error:
        raise NotWritten(f"The report {file} cannot be written: {error.strerror}.", "Name another file.") from None
