"""Places of faults in a request: what its caller wrote, never what the schema calls it."""

import re
from typing import Any

import pytest

from scoring.errors import InvalidParameter
from scoring.schema.registry import TASKS, task_schema

WRONG: tuple[Any, ...] = (
    {"x": 1}, {"type": "zz"}, {"type": "function", "function": {}}, {"1": "x"}, {"json": 1},
    [{"a": 1}], [[1]], ["a", 1], "zz", -5, 1.5, True,
)  # fmt: skip


def place_of(task: str, name: str, value: Any) -> str | None:
    """Where a value of a parameter is refused, if it is."""
    try:
        task_schema(task).parse_parameters({name: value})
    except InvalidParameter as refused:
        return refused.where
    return None


@pytest.mark.parametrize("task", TASKS)
def test_every_wrong_value_is_refused_by_a_place_of_the_request(task: str) -> None:
    told = {place_of(task, name, value) for name in task_schema(task).parameters.model_fields for value in WRONG}
    places = [place for place in told if place is not None]
    assert places
    assert [place for place in places if not re.fullmatch(r"parameters(\.\w+)+", place)] == []


def test_of_a_field_of_several_types_what_fits_furthest_is_told() -> None:
    unnamed = {"type": "function", "function": {}}
    assert place_of("conversational", "tool_choice", "zz") == "parameters.tool_choice"
    assert place_of("conversational", "tool_choice", unnamed) == "parameters.tool_choice.function.name"
    assert place_of("conversational", "guided_json", 5) == "parameters.guided_json"
