"""Grades, and the environment that explains them."""

import json
import math
import random
from typing import Any

import pytest

from mii_azure.verdict.grade import NUMBER, TOLERANCES, environment_difference, grade

TOLERANCE = 1e-4


def reply(value: Any, status: int = 200) -> tuple[int, bytes]:
    return status, json.dumps(value).encode()


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        (reply([{"label": "A", "score": 0.5}]), reply([{"label": "A", "score": 0.5}]), "bytes"),
        (reply([{"label": "A", "score": 0.5}]), reply([{"label": "A", "score": 0.50005}]), "values"),
        (reply([{"label": "A", "score": 0.5}]), reply([{"label": "A", "score": 0.6}]), "scores"),
        (reply([{"label": "A", "score": 0.5}]), reply([{"label": "B", "score": 0.5}]), "different"),
        (reply({"start": 1, "score": 0.5}), reply({"start": 2, "score": 0.5}), "different"),
        (reply([1.0, 2.0]), reply([1.0]), "different"),
        (reply({"a": 1.0}), reply({"b": 1.0}), "different"),
        (reply([{"generated_text": "a b"}]), reply([{"generated_text": "a c"}]), "different"),
        (reply({"error": {}}, 400), reply({"error": {}}, 500), "different"),
        (reply({"a": True}), reply({"a": 1}), "different"),
        ((200, b"<html>"), (200, b"<p>"), "different"),
        # A whole number may be written either way.
        (reply([1.0]), reply([1]), "values"),
    ],
)
def test_grades(left: tuple[int, bytes], right: tuple[int, bytes], expected: str) -> None:
    given, difference = grade(left, right, TOLERANCE)
    assert given == expected
    assert bool(difference) == (expected in ("scores", "different"))


def test_large_values_are_compared_relatively() -> None:
    assert grade(reply([1000.0]), reply([1000.05]), TOLERANCE)[0] == "values"
    assert grade(reply([1000.0]), reply([1000.5]), TOLERANCE)[0] == "scores"


def test_the_worst_score_is_the_one_named() -> None:
    left, right = reply({"a": 0.1, "b": [0.2, 0.9]}), reply({"a": 0.11, "b": [0.2, 0.5]})
    assert "$.b[1] is off by 4.00e-01" in grade(left, right, TOLERANCE)[1]


def picture(*colours: int) -> str:
    import base64
    import io

    from PIL import Image

    image = Image.new("RGB", (len(colours), 1))
    image.putdata([(colour, 0, 0) for colour in colours])
    target = io.BytesIO()
    image.save(target, "PNG", compress_level=colours[0] % 9)
    return base64.b64encode(target.getvalue()).decode()


@pytest.mark.parametrize(
    ("left", "right", "expected", "told"),
    [
        ([10, 20], [10, 20], "bytes", ""),
        ([10, 20], [11, 20], "values", ""),
        ([10, 20], [10, 200], "scores", "$[0].generated_image is off by 7.02e-01"),
        ([10, 20], [10], "different", "2 x 1 pixels against 1 x 1"),
    ],
)
def test_images_are_compared_by_their_pixels(left: list[int], right: list[int], expected: str, told: str) -> None:
    one, two = (reply([{"generated_image": picture(*colours)}]) for colours in (left, right))
    given, difference = grade(one, two, TOLERANCE)
    assert (given, told in difference) == (expected, True)
    assert grade(one, reply([{"generated_image": "no image"}]), TOLERANCE)[0] == "different"


def test_environment_difference_names_the_likeliest_cause_first() -> None:
    here = {"versions": {"torch": "2.13.0", "python": "3.11"}, "dtype": "float32", "device": "cpu", "threads": 2}
    there = {"versions": {"torch": "2.12.0", "python": "3.11"}, "dtype": "float32", "device": "cpu", "threads": 8}
    assert environment_difference(here, there) == ["torch 2.13.0 against 2.12.0", "threads 2 against 8"]
    assert environment_difference(here, here) == []


@pytest.mark.parametrize(("left", "right", "given"), [("1.0", "NaN", "scores"), ("1.0", "Infinity", "scores")])
def test_numbers_that_are_none(left: str, right: str, given: str) -> None:
    one, two = (200, f"[[{left}]]".encode()), (200, f"[[{right}]]".encode())
    assert grade(one, two, 1e-3)[0] == grade(two, one, 1e-3)[0] == given
    assert grade(two, (200, f"[[ {right} ]]".encode()), 1e-3)[0] == "values"


def embedding(cosine: float) -> tuple[list[float], list[float]]:
    """Two vectors of length 1 and 384 numbers with this cosine."""
    drawn = random.Random(0)
    one, other = ([drawn.gauss(0, 1) for _ in range(384)] for _ in range(2))
    one = [each / math.hypot(*one) for each in one]
    along = sum(a * b for a, b in zip(one, other, strict=True))
    across = [b - along * a for a, b in zip(one, other, strict=True)]
    sine, length = math.sqrt(1 - cosine**2), math.hypot(*across)
    return one, [cosine * a + sine * b / length for a, b in zip(one, across, strict=True)]


@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_vectors_are_compared_as_a_whole(precision: str, scale: float) -> None:
    """A number of a unit vector is far less than the tolerance of a number: each by itself would let all pass."""
    bound = TOLERANCES[precision]
    for cosine, expected in ((0.0, "scores"), (0.9, "scores"), (1 - bound**2 / 8, "values")):
        left, right = ([scale * each for each in vector] for vector in embedding(cosine))
        assert grade(reply([left]), reply([right]), bound)[0] == expected, cosine
    left, _ = embedding(1.0)
    for wrong in ([0.0] * 384, [1.0] + [0.0] * 383):
        assert grade(reply([left]), reply([wrong]), bound)[0] == "scores"
        assert grade(reply([wrong]), reply([left]), bound)[0] == "scores"
    even, nothing = reply([[0.036, -0.036] * 384]), reply([[0.0] * 768])
    assert "is off by" in grade(even, nothing, bound)[1]
    assert "$[0], as a vector, is off by 1.00e+00, more than 0.14" in grade(even, nothing, TOLERANCES["int8"])[1]


@pytest.mark.parametrize("precision", TOLERANCES)
def test_no_format_lets_a_number_move_far(precision: str) -> None:
    allowed = min(NUMBER, TOLERANCES[precision])
    for make in (lambda score: [{"score": score}], lambda score: {"scores": [score, 0.01]}):
        assert grade(reply(make(0.6)), reply(make(0.6 + 0.9 * allowed)), TOLERANCES[precision])[0] == "values"
        assert grade(reply(make(0.6)), reply(make(0.6 + 1.1 * allowed)), TOLERANCES[precision])[0] == "scores"
    assert grade(reply(make(0.6)), reply({"scores": [0.6, 0.0101]}), TOLERANCES[precision])[0] == "values"


def test_integers_without_end() -> None:
    for left, right in ((1.0, 10**400), ([1.0, 2.0], [1.0, 10**400])):
        assert grade(reply([left]), reply([right]), 0.14)[0] == "scores"
