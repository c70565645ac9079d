"""The bodies that Microsoft's client sends, kept as files; names and numbers that a plan decides are left out."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from mii_azure.azure.deploy import deploy
from mii_azure.generation import generate
from tests.azure.conftest import serve

GOLDENS = Path(__file__).with_name("goldens")
BODIES = {
    "endpoint": r"/onlineEndpoints/[^/]+$",
    "deployment": r"/deployments/blue$",
    "environment": r"^management.*/environments/",
    "model": r"^management.*/models/",
    "code": r"^management.*/codes/",
}


def normal(value: Any, key: str = "") -> Any:
    """The shape of a body: hashes, GUIDs, numbers and texts that the plan decides become their kind."""
    if isinstance(value, dict):
        return {name: normal(entry, name) for name, entry in sorted(value.items())}
    if isinstance(value, list):
        return [normal(entry) for entry in value]
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return value if key == "successThreshold" else "<number>"
    if key in ("GUNICORN_CMD_ARGS", "instanceType") or re.fullmatch(r"PT.*S", value):
        return "<planned>"
    value = re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "<guid>", value)
    return re.sub(r"\b([0-9a-f]{64}|[0-9a-f]{32}|[0-9a-f]{12})\b", "<hash>", value)


def compare(name: str, body: Any) -> None:
    shown = json.dumps(normal(body), indent=2) + "\n"
    path = GOLDENS / f"{name}.json"
    if os.environ.get("MII_AZURE_UPDATE_GOLDEN"):
        GOLDENS.mkdir(exist_ok=True)
        path.write_text(shown)
    assert path.read_text() == shown


def test_bodies(cloud, client, bundle):
    deploy(bundle, client)
    for name, where in BODIES.items():
        compare(name, cloud.sent("PUT", where)[0].json)


@pytest.mark.parametrize("mode", ["aml_token", "aad_token"])
def test_endpoints_of_other_auth_modes(mode, cloud, client, tiny, tmp_path):
    model = str(tiny("bert", "question-answering"))
    bundle = generate("question-answering", model, "My-qa", output=tmp_path / "bundle", auth_mode=mode)
    serve(cloud, bundle)
    deploy(bundle, client)
    compare(f"endpoint-{mode}", cloud.sent("PUT", BODIES["endpoint"])[0].json)
