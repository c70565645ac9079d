"""The requests that parity sends."""

import json
from pathlib import Path

import pytest

from mii_azure.errors import SpecError
from mii_azure.verdict.cases import TOKENS, edge_requests, read_requests
from scoring.api.dialects import parse
from scoring.errors import MiiAzureError
from scoring.schema import token_requests
from scoring.schema.registry import TASKS

BAD = {"empty body", "empty object", "empty list", "not JSON", "wrong type", "NaN", "unknown parameter"}


@pytest.mark.parametrize("task", TASKS)
def test_good_edges_satisfy_the_schema_and_bad_ones_do_not(task: str) -> None:
    from scoring.strict_json.body import read_json

    requests = edge_requests(task, context_length=128)
    assert {request.name for request in requests} >= BAD | {"sample", "unicode", "list of three", "past the context"}
    for request in requests:
        if request.name in BAD | {"unknown encoding"}:
            with pytest.raises(MiiAzureError):
                parse(read_json(request.body), TASKS[task])
        elif request.name == TOKENS:
            assert token_requests.read(read_json(request.body))
        else:
            assert parse(read_json(request.body), TASKS[task]).inputs


def test_each_adapter_is_asked_and_one_that_is_not_there() -> None:
    plain = edge_requests("conversational", context_length=128)
    more = edge_requests("conversational", 128, ("formal", "terse"))[len(plain) :]
    assert [json.loads(each.body)["parameters"]["adapter"] for each in more] == ["formal", "terse", "there is none"]


def test_requests_from_a_file(tmp_path: Path) -> None:
    lines = tmp_path / "requests.jsonl"
    lines.write_text('{"inputs": "a"}\n\nnot json at all\n', encoding="utf-8")
    assert [r.body for r in read_requests(lines)] == ['{"inputs": "a"}', "not json at all"]
    document = tmp_path / "requests.json"
    document.write_text(json.dumps([{"inputs": "a"}, {"inputs": "b"}]), encoding="utf-8")
    assert [json.loads(r.body)["inputs"] for r in read_requests(document)] == ["a", "b"]


def test_a_requests_file_that_is_not_there_or_empty(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="cannot be read"):
        read_requests(tmp_path / "absent")
    (tmp_path / "empty").write_text("\n", encoding="utf-8")
    with pytest.raises(SpecError, match="holds no request"):
        read_requests(tmp_path / "empty")
