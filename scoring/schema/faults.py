"""Faults that pydantic finds in a request, by the place that its caller wrote."""

from typing import Any

from pydantic import ValidationError

#: What pydantic puts into a place for a member of a union, or for a key: the caller wrote none of it.
_MEMBERS = ("str", "int", "float", "bool", "[key]")
_MEMBER_KINDS = ("function-", "constrained", "list[", "dict[", "literal[")


def first_fault(error: ValidationError) -> tuple[str, str]:
    """Place and reason of the first thing that is wrong; of a union, in the member that what was sent fits furthest."""
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    place = faults[0]["loc"]
    at = next((number for number, part in enumerate(place) if _is_member(part)), len(place))
    others = [each for each in faults if each["loc"][:at] == place[:at]] if at < len(place) else []
    chosen = max(others, key=lambda each: len(each["loc"]), default=faults[0])
    parts = [*chosen["loc"][:at], *chosen["loc"][at + 1 :]]
    return ".".join(str(part) for part in parts if not _is_member(part)), str(chosen["msg"])


def _is_member(part: Any) -> bool:
    return isinstance(part, str) and (part in _MEMBERS or part.startswith(_MEMBER_KINDS))
