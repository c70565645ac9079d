"""HTML of results, as notebooks show them: a headline and tables, every text escaped."""

from collections.abc import Iterable, Sequence
from html import escape

_CELL = "text-align:left;vertical-align:top;padding:2px 10px 2px 0"


def page(headline: str, *tables: str) -> str:
    """HTML of a headline and what follows it."""
    return f"<div><p><b>{escape(headline)}</b></p>{''.join(tables)}</div>"


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """HTML of a table."""
    head = "".join(f'<th style="{_CELL}">{escape(column)}</th>' for column in columns)
    body = "".join(
        "<tr>" + "".join(f'<td style="{_CELL}">{escape(str(cell))}</td>' for cell in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
