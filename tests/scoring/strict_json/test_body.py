"""The JSON that hosts send: the standard library's text in fewer steps, and its refusals."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoring.strict_json.body import dumps, read_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)


@given(VALUES)
def test_it_reads_back_as_what_the_standard_library_writes(value: Any) -> None:
    assert json.loads(dumps(value)) == json.loads(json.dumps(value))


def test_it_is_compact_and_keeps_letters() -> None:
    assert dumps({"text": "naïve ☃", "ok": [True, None]}) == '{"text":"naïve ☃","ok":[true,null]}'.encode()


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_no_number_that_json_lacks(number: float) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        dumps([[0.5, number]])


def test_words_that_look_like_such_numbers_are_text() -> None:
    text = "NaN and Infinity are two words"
    assert json.loads(dumps({"generated_text": text})) == {"generated_text": text}


def test_half_a_surrogate_pair_is_replaced() -> None:
    assert dumps({"message": "\ud83d!"}) == b'{"message":"?!"}'


def test_a_byte_order_mark_before_a_body_is_passed_over() -> None:
    assert read_json('\ufeff{"inputs": "a"}') == {"inputs": "a"}
