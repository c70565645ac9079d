"""A text generator on two cores is told what a second process would give; others are not."""

import pytest

from local_runner.front_ends.hint import hint


@pytest.mark.parametrize("task", ["text-generation", "conversational"])
def test_two_cores_are_told_of_two_processes(task: str) -> None:
    assert "--replicas 2" in hint(task, 2, gpu=False)


@pytest.mark.parametrize(
    ("task", "cores", "gpu"),
    [
        ("text-generation", 2, True),
        ("text-generation", 1, False),
        ("text-generation", 8, False),
        ("fill-mask", 2, False),
    ],
)
def test_nothing_is_told_where_nothing_was_measured(task: str, cores: int, gpu: bool) -> None:
    assert hint(task, cores, gpu) == ""
