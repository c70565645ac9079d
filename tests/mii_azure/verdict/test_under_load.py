"""Replies within the tolerance of a pair's formats; under load those against those alone, none where it is promised."""

import json
import os
from typing import Any, cast

import pytest

from local_runner.targets.targets import Target
from mii_azure.verdict.cases import Request
from mii_azure.verdict.outcome import TargetRun, compare
from mii_azure.verdict.parity import _one_format, _Run
from mii_azure.verdict.sides import Side
from scoring.passes.cpu import FORMAT

SIDE = Side(target="grpc", where="here")


def reply(score: float) -> tuple[int, bytes]:
    return 200, json.dumps([{"label": "A", "score": score}]).encode()


@pytest.mark.parametrize(("invariant", "grade"), [(False, "values"), (True, "scores")])
def test_no_number_may_move_where_batch_invariance_is_promised(invariant: bool, grade: str) -> None:
    run = TargetRun([reply(0.75)], {}, SIDE, invariant=invariant, loaded=[[reply(0.75), reply(0.7500001)]])
    (found,) = compare([Request("one", "{}")], {"grpc": run}, "bfloat16")
    assert found.under_load
    assert found.grade == grade


def test_hosts_here_run_in_the_format_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FORMAT, raising=False)
    runs = {name: TargetRun([], told, SIDE) for name, told in (("url:x", {"precision": "float16"}), ("http", {}))}
    with _one_format(runs):
        assert FORMAT not in os.environ
    with _one_format({"url:x": runs["url:x"], "grpc": TargetRun([], {"precision": "int8"}, SIDE)}):
        assert os.environ[FORMAT] == "int8"
    assert FORMAT not in os.environ


class Silent:
    """A target that tells nothing of itself."""

    own_form = True

    def metadata(self) -> dict[str, Any]:
        return {}

    def takes(self, raw: str) -> bool:
        return False

    def billed(self) -> tuple[str, int]:
        return "", 0


def test_only_a_host_of_the_bundle_promises_what_the_bundle_does() -> None:
    settings = {"task": "fill-mask", "dtype": "bfloat16", "limits": {"context_length": 64, "batch_invariant": True}}
    run = _Run(settings, 0, 0, lambda told: None)
    run.sent = [Request("one", "{}")]
    for name in ("grpc", "url:http://127.0.0.1/v1"):
        run.ask(name, cast(Target, Silent()))
    assert {name: told.invariant for name, told in run.runs.items()} == {"grpc": True, "url:http://127.0.0.1/v1": False}


def test_the_same_bits_are_alike_there() -> None:
    run = TargetRun([reply(0.75)], {}, SIDE, invariant=True, loaded=[[reply(0.75)]])
    (found,) = compare([Request("one", "{}")], {"grpc": run}, "bfloat16")
    assert found.grade == "bytes"


def test_a_targets_format_loosens_its_own_pair_alone() -> None:
    def run(score: float, precision: str) -> TargetRun:
        alone = reply(score)
        return TargetRun([alone], {"precision": precision}, SIDE, loaded=[[reply(score + 0.01)]])

    runs = {"http": run(0.7, "float32"), "grpc": run(0.71, "float32"), "url:http://else": run(0.71, "int8")}
    found = {(each.target, each.under_load): each.grade for each in compare([Request("one", "{}")], runs, "float32")}
    assert found == {
        ("grpc", False): "scores",
        ("url:http://else", False): "values",
        ("http", True): "scores",
        ("grpc", True): "scores",
        ("url:http://else", True): "values",
    }
