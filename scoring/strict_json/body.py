"""JSON bodies as every host sends and takes them."""

import json
import re
from typing import Any

import pydantic_core

from scoring.errors import InvalidJson

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # an escape of half a pair, which alone has no UTF-8 form
#: Most bytes in JSON of a character, as an escape, and of a 64-bit number with its separator.
CHARACTER_BYTES, NUMBER_BYTES = 6, 25
#: Levels of a request; no request form has half as many, and deeper ones may exhaust a parser's stack.
_DEEPEST = 64


def read_json(raw: str) -> Any:
    """Parse a body; raise InvalidJson for anything that is not strict JSON of valid Unicode, or too deep."""
    raw = raw.removeprefix("\ufeff")  # a byte order mark, which some editors and frameworks write
    if not raw.strip():
        raise InvalidJson("The body is empty.", 'Send JSON with the header "Content-Type: application/json".')
    try:
        value = json.loads(raw, parse_constant=_refuse_constant)
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:
        if isinstance(error, InvalidJson):
            raise
        raise InvalidJson(f"The body is not JSON: {error}.", 'It looks like {"inputs": ...}.') from None
    if is_too_deep(raw, value):
        raise _too_deep()
    if has_lone_surrogates(raw, value):
        raise InvalidJson("The text holds half of a surrogate pair.", "Send valid Unicode.")
    return value


def has_lone_surrogates(raw: str, value: Any) -> bool:
    """Return True if a value, parsed from `raw` and not too deep, has a string without a UTF-8 form."""
    escaped = ("\\ud" in raw or "\\uD" in raw) and _SURROGATE.search(raw)  # a word is found ten times faster
    return not (_is_valid(raw) and (not escaped or _is_valid(json.dumps(value, ensure_ascii=False))))


def _is_valid(text: str) -> bool:
    """Return True if a text has a UTF-8 form."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_too_deep(raw: str, value: Any) -> bool:
    """Return True if a value, parsed from `raw`, has more levels than are accepted."""
    if raw.count("[") + raw.count("{") <= _DEEPEST:
        return False
    level = [value]
    for _ in range(_DEEPEST):
        inside = (parent.values() if isinstance(parent, dict) else parent for parent in level)
        level = [child for children in inside for child in children if isinstance(child, dict | list)]
        if not level:
            return False
    return True


def _too_deep() -> InvalidJson:
    return InvalidJson("The JSON is nested too deeply.", f"Nest it no deeper than {_DEEPEST} levels.")


def _refuse_constant(name: str) -> float:
    raise InvalidJson(f"{name} is not JSON.", "Send a number or null.")


def text_bytes(text: str) -> int:
    """Bytes that a text takes in JSON."""
    return len(pydantic_core.to_json(text))


def dumps(value: Any) -> bytes:
    """Serialise to compact UTF-8; half a surrogate pair, echoed in an error, becomes `?`; raises ValueError for NaN.

    pydantic's serialiser writes the numbers of a vector in a tenth of the standard library's time. Values it does not
    take, or does not write as valid JSON, go to the standard library.
    """
    try:
        body = pydantic_core.to_json(value, inf_nan_mode="constants")
    except pydantic_core.PydanticSerializationError:
        body = b"NaN"
    # A single byte is found much faster than a word, and a vector's text has neither letter.
    if (b"N" in body and b"NaN" in body) or (b"I" in body and b"Infinity" in body):
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        return text.encode(errors="replace")
    return body
