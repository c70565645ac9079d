"""Every parameter of every task stands in four lists: OpenAPI, docs/, parity's edge requests, and what is fuzzed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from local_runner.http import openapi_bodies
from local_runner.protocol import messages_requests, openai_requests, responses_requests, retrieval_requests
from mii_azure.bundle.openapi import documents
from mii_azure.verdict.cases import edge_requests
from scoring.config import Deployment
from scoring.errors import InvalidParameter
from scoring.schema.registry import TASKS, schema
from tests.scenarios.fuzz import test_run
from tests.scenarios.fuzz.payloads import fitting_values

PAGE = Path(__file__).parent.parent / "docs" / "parameters.md"
MESSAGE = {"role": "user", "content": "a"}
#: Tasks whose fuzzing would take minutes a request.
SLOW = {"text-to-image"}


@pytest.mark.parametrize("task", TASKS)
def test_each_parameter_is_in_the_documents_of_a_bundle(task: str) -> None:
    fields = set(TASKS[task].parameters.model_fields)
    found = documents(schema(task), title="a", model="b")
    for name in ("swagger3.json", "swagger3.1.json"):
        canonical, azure = found[name]["components"]["schemas"]["ServiceInput"]["anyOf"][:2]
        assert set(canonical["properties"]["parameters"]["properties"]) == fields
        assert set(azure["properties"]["params"]["properties"]) == fields


@pytest.mark.parametrize("task", TASKS)
def test_each_parameter_is_in_a_table(task: str) -> None:
    """The page is written by the code; `test_docs.py` holds that it is current."""
    sections = PAGE.read_text(encoding="utf-8").split("\n## ")[1:]
    own = [each for each in sections if task in each.split("\n", 1)[0].split(", ")]
    rows = {row.split("`")[1] for each in own for row in each.splitlines() if row.startswith("| `")}
    assert rows == set(TASKS[task].parameters.model_fields)


@pytest.mark.parametrize("task", TASKS)
def test_parity_asks_with_each_parameter(task: str) -> None:
    beside = ("one",) if "adapter" in TASKS[task].parameters.model_fields else ()
    asked: set[str] = set()
    for each in edge_requests(task, 128, beside):
        body = json.loads(each.body) if each.name not in ("empty body", "not JSON", "NaN") else None
        if isinstance(body, dict):
            asked |= body.keys() | body.get("parameters", {}).keys()
    assert not set(TASKS[task].parameters.model_fields) - asked


@pytest.mark.parametrize("task", TASKS)
def test_each_parameter_is_fuzzed(task: str) -> None:
    assert task in test_run.FAMILIES or task in SLOW
    assert set(fitting_values(TASKS[task])) == set(TASKS[task].parameters.model_fields)


BODIES = [
    ("/v1/completions", "text-generation", openai_requests.completion, {"prompt": "a"}),
    ("/v1/completions", "translation", openai_requests.completion, {"prompt": "a"}),
    ("/v1/chat/completions", "conversational", openai_requests.chat, {"messages": [MESSAGE]}),
    ("/v1/responses", "conversational", responses_requests.canonical, {"input": "a"}),
    ("/v1/messages", "conversational", messages_requests.canonical, {"messages": [MESSAGE], "max_tokens": 1}),
    ("/v1/embeddings", "sentence-embeddings", openai_requests.embeddings, {"input": "a"}),
    ("/v1/rerank", "text-ranking", retrieval_requests.rerank, {"query": "a", "documents": ["b"]}),
    ("/v1/rerank", "sentence-similarity", retrieval_requests.rerank, {"query": "a", "documents": ["b"]}),
    ("/v1/score", "text-ranking", retrieval_requests.score, {"text_1": "a", "text_2": "b"}),
]


@pytest.mark.parametrize(("path", "task", "read", "least"), BODIES, ids=[f"{path}-{task}" for path, task, *_ in BODIES])
def test_what_another_body_hands_on_is_in_the_document_of_a_server(
    path: str, task: str, read: Callable[..., Any], least: dict[str, Any]
) -> None:
    """What the reader of the body makes a parameter of the task, the server's document names."""
    form = documents(schema(task), title="a", model="b")["swagger3.1.json"]["components"]["schemas"]["ServiceInput"]
    parameters = form["anyOf"][0]["properties"]["parameters"]["properties"]
    document = openapi_bodies.describe({"paths": {path: {"post": {"responses": {}}}}})
    openapi_bodies.add_parameters(document, task, parameters)
    body = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    handed = set()
    for name in parameters:
        try:
            handed |= {name} & read({**least, name: 1}, Deployment("a", task))["parameters"].keys()
        except InvalidParameter as refused:
            assert name in refused.where or name in refused.message
    assert handed
    assert handed <= body["properties"].keys()
