"""The captured bodies through an independent reading of Azure's OpenAPI: npm's @azure/arm-machinelearning 2.1.1."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.mii_azure.azure.test_goldens import GOLDENS
from tests.npm import node

#: By the start or end of a golden's name; what npm's package, of an earlier API, does not describe is left out.
MODELS = {
    "endpoint-batch": "BatchEndpoint",
    "deployment-batch": "BatchDeployment",
    "endpoint": "OnlineEndpoint",
    "deployment": "OnlineDeployment",
    "blue": "OnlineDeployment",
    "environment": "EnvironmentVersion",
    "model": "ModelVersion",
}

pytestmark = pytest.mark.npm


def model_of(golden: str) -> str | None:
    return next((model for name, model in MODELS.items() if golden.startswith(name) or golden.endswith(name)), None)


def filled(value: Any) -> Any:
    """A golden with values of the right kind where it has none."""
    if isinstance(value, dict):
        return {key: filled(entry) for key, entry in value.items()}
    return {"<number>": 7, "<planned>": "PT10S"}.get(value, value) if isinstance(value, str) else value


def through(cases: list[dict[str, Any]]) -> Any:
    return node(Path(__file__).with_name("roundtrip.mjs"), "@azure/arm-machinelearning", cases)


def test_every_body_comes_through_unchanged():
    goldens = {path.stem: model for path in sorted(GOLDENS.glob("*.json")) if (model := model_of(path.stem))}
    assert len(goldens) > 15
    cases = [
        {"model": model, "body": filled(json.loads((GOLDENS / f"{name}.json").read_text()))}
        for name, model in goldens.items()
    ]
    for case in cases:
        case["body"]["properties"].pop("mirrorTraffic", None)  # newer than the package's API, 2022-10-01
    got = dict(zip(goldens, through(cases), strict=True))
    for name, case in zip(goldens, cases, strict=True):
        if case["model"] == "OnlineDeployment":
            # The package writes its own default.
            assert got[name]["properties"]["requestSettings"].pop("maxQueueWait") == "PT0.5S"
        assert got[name] == case["body"], name


def test_the_reading_catches_what_is_wrong():
    """azure-ai-ml 1.35 sends the hash version of code as a number, where Azure's description has texts."""
    body = filled(json.loads((GOLDENS / "code.json").read_text()))
    body["properties"]["properties"]["hash_version"] = 202208
    with pytest.raises(AssertionError, match='"202208" must be of type string'):
        through([{"model": "CodeVersion", "body": body}])
