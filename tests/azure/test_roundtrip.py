"""The captured bodies through an independent reading of Azure's OpenAPI: npm's @azure/arm-machinelearning 2.1.1."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.azure.test_goldens import GOLDENS

MODELS = {
    "endpoint": "OnlineEndpoint",
    "endpoint-aml_token": "OnlineEndpoint",
    "endpoint-aad_token": "OnlineEndpoint",
    "deployment": "OnlineDeployment",
    "environment": "EnvironmentVersion",
    "model": "ModelVersion",
}


def filled(value: Any) -> Any:
    """A golden with values of the right kind where it has none."""
    if isinstance(value, dict):
        return {key: filled(entry) for key, entry in value.items()}
    return {"<number>": 7, "<planned>": "PT10S"}.get(value, value) if isinstance(value, str) else value


def through(cases: list[dict[str, Any]]) -> Any:
    modules = os.environ.get("MII_AZURE_NODE_MODULES", "")
    if not shutil.which("node") or not (Path(modules) / "@azure" / "arm-machinelearning").is_dir():
        pytest.skip("needs node, and MII_AZURE_NODE_MODULES with `npm install @azure/arm-machinelearning@2.1.1`")
    command = ["node", str(Path(__file__).with_name("roundtrip.mjs")), str(Path(modules).resolve())]
    done = subprocess.run(command, input=json.dumps(cases), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_body_comes_through_unchanged():
    cases = [
        {"model": model, "body": filled(json.loads((GOLDENS / f"{name}.json").read_text()))}
        for name, model in MODELS.items()
    ]
    for case in cases:
        case["body"]["properties"].pop("mirrorTraffic", None)  # newer than the package's API, 2022-10-01
    got = through(cases)
    deployment = got[list(MODELS).index("deployment")]["properties"]
    assert deployment["requestSettings"].pop("maxQueueWait") == "PT0.5S"  # the package writes its own default
    assert got == [case["body"] for case in cases]


def test_the_reading_catches_what_is_wrong():
    """azure-ai-ml 1.35 sends the hash version of code as a number, where Azure's description has texts."""
    body = filled(json.loads((GOLDENS / "code.json").read_text()))
    body["properties"]["properties"]["hash_version"] = 202208
    with pytest.raises(AssertionError, match='"202208" must be of type string'):
        through([{"model": "CodeVersion", "body": body}])
