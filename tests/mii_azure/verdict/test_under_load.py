"""Replies under load against those alone: within the format's tolerance, or without any where it is promised."""

import json

import pytest

from mii_azure.verdict.cases import Request
from mii_azure.verdict.grade import TOLERANCES
from mii_azure.verdict.outcome import TargetRun, compare
from mii_azure.verdict.sides import Side

SIDE = Side(target="grpc", where="here")


def reply(score: float) -> tuple[int, bytes]:
    return 200, json.dumps([{"label": "A", "score": score}]).encode()


@pytest.mark.parametrize(("invariant", "grade"), [(False, "values"), (True, "scores")])
def test_no_number_may_move_where_batch_invariance_is_promised(invariant: bool, grade: str) -> None:
    run = TargetRun([reply(0.75)], {}, SIDE, invariant=invariant, loaded=[[reply(0.75), reply(0.7500001)]])
    (found,) = compare([Request("one", "{}")], {"grpc": run}, TOLERANCES["bfloat16"])
    assert found.under_load
    assert found.grade == grade


def test_the_same_bits_are_alike_there() -> None:
    run = TargetRun([reply(0.75)], {}, SIDE, invariant=True, loaded=[[reply(0.75)]])
    (found,) = compare([Request("one", "{}")], {"grpc": run}, TOLERANCES["bfloat16"])
    assert found.grade == "bytes"
