"""Stands for what applies templates: Bicep by a parser of its own, Terraform by terraform's own expressions.

Both send to `live`, {"endpoint" or "deployment": body}, a PUT of a body replacing the one before, as ARM does.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from pycep import BicepParser

Live = dict[str, dict[str, Any]]


def apply_bicep(files: dict[str, str], live: Live, given: dict[str, Any], file: str = "main.bicep") -> dict[str, Any]:
    """Apply a file with its modules in the order that they depend on one another; return its outputs."""
    found = BicepParser().parse(text=files[file])
    scope: dict[str, Any] = dict(given) | {"workspace": {"id": given["workspaceName"]}}
    for name, variable in found.get("variables", {}).items():
        scope[name] = evaluate(variable["value"], scope)
    for name, resource in found["resources"].items():
        if "/" not in resource["type"].partition("/")[2] or "autoscale" in name:  # the workspace, or the rules
            continue
        body = evaluate(resource["config"], scope)
        once = any(each["type"] == "onlyIfNotExists" for each in resource["decorators"])
        if not resource["existing"] and not (once and name in live):
            live[name] = body
        scope[name] = live[name]
    for name, module in found.get("modules", {}).items():
        given_on = {key: evaluate(value, scope) for key, value in module["config"]["params"].items()}
        scope[name] = {"outputs": apply_bicep(files, live, given_on, module["detail"]["path"])}
    return {name: evaluate(output["value"], scope) for name, output in found.get("outputs", {}).items()}


def evaluate(node: Any, scope: dict[str, Any]) -> Any:
    """Value of an expression of the few kinds that templates here have."""
    if isinstance(node, dict) and "operator" in node:
        return _operator(node["operator"], scope)
    if isinstance(node, dict) and "function" in node:
        kind, arguments = node["function"]["type"], list(node["function"]["parameters"].values())
        return _function(kind, arguments, scope)
    if isinstance(node, dict):
        return {key.strip("'"): evaluate(value, scope) for key, value in node.items()}
    if isinstance(node, list):
        return [evaluate(each, scope) for each in node]
    return scope.get(node, node) if isinstance(node, str) else node


def _operator(operator: dict[str, Any], scope: dict[str, Any]) -> Any:
    kind, operands = operator["type"], operator["operands"]
    if kind == "conditional":
        return evaluate(operands["true_value" if evaluate(operands["condition"], scope) else "false_value"], scope)
    assert kind == "property_accessor", kind
    return _property(evaluate(operands["operand_1"], scope), operands["operand_2"], scope)


def _property(base: Any, path: Any, scope: dict[str, Any]) -> Any:
    """Property of a value; the parser hangs what comes after a dot, operators too, below it."""
    if isinstance(path, str):
        return base.get(path)
    kind, (first, second) = path["operator"]["type"], path["operator"]["operands"].values()
    value = _property(base, first, scope)
    if kind == "property_accessor":
        return _property(value, second, scope)
    if kind == "coalesce":
        return evaluate(second, scope) if value is None else value
    assert kind == "greater_than", kind
    return value > second


def _function(kind: str, arguments: list[Any], scope: dict[str, Any]) -> Any:
    def each(lambda_: Any, item: Any) -> Any:
        return evaluate(lambda_["detail"]["expression"], scope | {lambda_["detail"]["var_1"]: item})

    if kind == "resourceGroup":
        return {"location": "eastus"}
    first = evaluate(arguments[0], scope) if kind != "filter" else None
    if kind == "items":
        return [{"key": key, "value": value} for key, value in first.items()]
    if kind == "empty":
        return not first
    if kind == "toObject":
        return {each(arguments[1], item): each(arguments[2], item) for item in first}
    assert kind == "filter", kind
    array, test = sorted(arguments, key=lambda given: "detail" in given)
    return [item for item in evaluate(array, scope) if each(test, item)]


def apply_terraform(text: str, live: Live, state: set[str], folder: Path) -> None:
    """Apply a document once; `state` names the resources that Terraform knows to be there."""
    document = json.loads(text)
    for name, block in document["resource"]["azapi_resource"].items():
        if name != "autoscale" and not (name in state and block.get("lifecycle") == {"ignore_changes": "all"}):
            live[name] = dict(block["body"])
            state.add(name)
    (update,) = document["resource"]["azapi_update_resource"].values()
    if "traffic" in state and update["lifecycle"] == {"ignore_changes": "all"}:
        return
    state.add("traffic")
    endpoint = live["endpoint"]
    now = json.dumps(json.dumps(endpoint["properties"].get("traffic")))
    expressions = {
        "locals": {name: value.replace(_READ, f"jsondecode({now})") for name, value in document["locals"].items()},
        "output": {"traffic": {"value": update["body"]["properties"]["traffic"]}},
    }
    endpoint["properties"] = endpoint["properties"] | {"traffic": terraform(expressions, folder)["traffic"]["value"]}


_READ = "data.azapi_resource.live.output.properties.traffic"


def terraform(document: dict[str, Any], folder: Path, **variables: str) -> Any:
    """Plan a document with terraform itself and return its outputs."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "main.tf.json").write_text(json.dumps(document))
    given = {f"TF_VAR_{name}": value for name, value in variables.items()}
    environment = {**os.environ, "CHECKPOINT_DISABLE": "1", **given}
    for command in (["init", "-input=false"], ["plan", "-input=false", "-out=plan"]):
        done = subprocess.run(["terraform", *command], cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    shown = subprocess.run(["terraform", "show", "-json", "plan"], cwd=folder, env=environment, capture_output=True)
    return json.loads(shown.stdout)["planned_values"]["outputs"]
