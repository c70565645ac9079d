"""Mutations of JSON files that other people wrote: a value somewhere inside, or the text as a whole."""

import copy
import json
from typing import Any

from hypothesis import strategies as st

DEEP = 100_000  # levels, past any parser's stack
VALUES: st.SearchStrategy[Any] = st.sampled_from(
    [
        None,
        True,
        False,
        0,
        -1,
        1,
        5,
        2**31,
        2**63,
        10**40,
        10**400,
        -(10**40),
        0.5,
        1e300,
        float("inf"),
        float("nan"),
        "",
        "x",
        "8",
        "-1",
        "\x1b[2J\x1b]0;title\x07",
        "\ud800",
        "\x00",
        "../../etc/passwd",
        "/dev/zero",
        "a" * 5000,
        [],
        [5],
        ["x"],
        [None],
        [[]],
        [{}],
        {},
        {"x": 5},
        {"": None},
    ]
)
_TEXTS = (
    "",
    " ",
    "null",
    "[]",
    "5",
    '"x"',
    "{",
    "{}",
    "[" * DEEP + "]" * DEEP,
    '{"a":' * DEEP + "1" + "}" * DEEP,
    '{"a": NaN}',
    '{"a": 1e999}',
    '{"a": ' + "9" * 5000 + "}",
    '{"a": 1, "a": 2}',
    '{"a": "\\ud800"}',
    "\ufeff{}",
)


@st.composite
def broken(draw: st.DrawFn, text: str) -> bytes:
    """The text of a JSON file with one to three values changed, now and then another text, or other bytes."""
    how = draw(st.sampled_from(["value"] * 8 + ["text", "bytes", "deep"]))
    if how == "text":
        return draw(st.sampled_from(_TEXTS)).encode()
    if how == "bytes":
        return draw(st.sampled_from([text.encode("utf-16"), b"\xff" + text.encode(), text.encode()[:-3]]))
    value = json.loads(text)
    places = list(_places(value))
    for _ in range(draw(st.integers(1, 3))):
        if places:
            _change(draw, value, draw(st.sampled_from(places)))
    changed = json.dumps(value)
    if how == "deep" and places:
        depth = draw(st.sampled_from([70, 500, DEEP]))
        key = json.dumps(places[0][-1])
        return changed.replace(f"{key}: ", f'{key}: {"[" * depth}1{"]" * depth}, {key[:-1]}2": ', 1).encode()
    return changed.encode()


def _places(value: Any, above: tuple[Any, ...] = ()) -> Any:
    keys = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(keys)[:40]:
        yield (*above, key)
        yield from _places(inner, (*above, key))


def _change(draw: st.DrawFn, value: Any, place: tuple[Any, ...]) -> None:
    try:
        for key in place[:-1]:
            value = value[key]
        if draw(st.integers(0, 6)) == 0 and isinstance(value, dict):
            del value[place[-1]]
        else:
            value[place[-1]] = copy.deepcopy(draw(VALUES))
    except (LookupError, TypeError):  # an earlier change took the place away
        return
