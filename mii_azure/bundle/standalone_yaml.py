"""YAML that this program did not write: the role of each file, and the files that belong together."""

from pathlib import Path
from typing import Any

import yaml

from mii_azure.bundle.bundle_view import DEPLOYMENT, ENDPOINT, ENVIRONMENT, MODEL, TEMPLATE, WORKSPACE, Inspected
from mii_azure.bundle.yaml_text import parse_yaml
from mii_azure.errors import NotABundle

_SUFFIXES = {".yml", ".yaml"}
# By the end of `$schema`, in lower case, then by keys that only one kind of file has.
_SCHEMAS = (
    ("deploymenttemplate", TEMPLATE),
    ("onlineendpoint", ENDPOINT),
    ("batchendpoint", ENDPOINT),
    ("deployment", DEPLOYMENT),
)
_ASSETS = (("environment", ENVIRONMENT), ("model", MODEL))
#: Roles of files that are empty: as Azure's documentation names what is not.
_NAMES = {"endpoint": ENDPOINT, "deployment": DEPLOYMENT, "environment": ENVIRONMENT, "model": MODEL}
_MODEL_TYPES = {"custom_model", "mlflow_model", "triton_model"}


def views(target: Path) -> list[Inspected]:
    """Views of a YAML file or a folder of them: each deployment with its endpoint, the rest one by one.

    Raises NotABundle if there is no Azure ML YAML.
    """
    paths = (
        [target] if target.is_file() else sorted(p for p in target.iterdir() if p.suffix in _SUFFIXES and p.is_file())
    )
    roles = {path: role for path in paths if (role := _role(path))}
    if not roles:
        raise NotABundle(
            f"{target} holds no manifest.json and no Azure ML YAML of an endpoint, deployment, environment or model.",
            "Name a bundle, such a file, or a folder of them.",
        )
    found = []
    paired: set[Path] = set()
    endpoints = {_value(path).get("name"): path for path, role in roles.items() if role == ENDPOINT}
    deployments = [path for path, role in roles.items() if role == DEPLOYMENT]
    for path in deployments:
        files = {DEPLOYMENT: path}
        named = _value(path).get("endpoint_name")
        slots = frozenset(
            str(_value(each).get("name")).lower() for each in deployments if _value(each).get("endpoint_name") == named
        )
        endpoint = endpoints.get(named)
        if endpoint:
            files[ENDPOINT] = endpoint
            paired.add(endpoint)
        found.append(Inspected(path.parent, files, slots))
    found += [
        Inspected(path.parent, {role: path})
        for path, role in roles.items()
        if role != DEPLOYMENT and path not in paired
    ]
    return found


def _value(path: Path) -> dict[str, Any]:
    try:
        value = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _is_empty(path: Path) -> bool:
    """True for a file of comments."""
    try:
        return parse_yaml(path.read_text(encoding="utf-8")) is None
    except (OSError, yaml.YAMLError, ValueError):
        return False


def _role(path: Path) -> str | None:
    """Role of a file, "" or None for YAML of another kind; a file that cannot be read is treated as an endpoint."""
    value = _value(path)
    if not value:
        return _NAMES.get(path.stem) if _is_empty(path) else ENDPOINT
    schema = str(value.get("$schema", "")).lower().rsplit("/", 1)[-1].split(".")[0]
    for end, role in (*_SCHEMAS, *_ASSETS):
        if schema.endswith(end):
            return role
    if schema:
        return None
    if str(value.get("apiVersion", "")).startswith("kaito.sh/") and str(value.get("kind")).lower() == "workspace":
        return WORKSPACE
    if "deployment_template_type" in value:
        return TEMPLATE
    if "endpoint_name" in value:
        return DEPLOYMENT
    if value.keys() & {"auth_mode", "traffic"}:
        return ENDPOINT
    if value.keys() & {"image", "build", "conda_file"} and "name" in value:
        return ENVIRONMENT
    return MODEL if value.get("type") in _MODEL_TYPES else None
