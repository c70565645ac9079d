"""Bicep and Terraform (its JSON syntax, with the azapi provider) of a bundle's endpoint and deployment.

The bodies are built by azure-ai-ml from the YAML. Model, environment and code are assets with files, which no
template uploads: `mii-azure deploy` or `az ml` registers them, and the template takes their ids.

An endpoint's body states its traffic too, so that sending the bundle's again would take it from every live slot. The
endpoint is therefore made only where there is none, and its traffic is set once the deployment is ready: as it is live
by then, or all of it to this deployment if no slot has any.
"""

import contextlib
import io
import json
import re
import warnings
from pathlib import Path
from typing import Any

from mii_azure.azure import autoscale as autoscaling
from mii_azure.bundle.bundle_view import DEPLOYMENT, ENDPOINT, Inspected, refuse_own_image
from mii_azure.errors import SpecError

API = "2024-10-01"
_TYPE = "Microsoft.MachineLearningServices/workspaces/onlineEndpoints"
_SCALING = "Microsoft.Insights/autoscaleSettings"
_DEPLOYED_ID = "azapi_resource.deployment.id"
_WORKSPACE = "\0workspace\0"  # placeholder for the workspace's id, until a language's own expression replaces it
_CODE = "\0code\0"
_DEPLOYED = "\0deployment\0"
_LIVE, _MIRRORED = "\0live\0", "\0mirrored\0"
FORMATS = ("bicep", "terraform")


def infra(bundle: Path, form: str) -> dict[str, str]:
    """Generate {file name: text} for the bundle's endpoint and deployment; raises SpecError, NotABundle."""
    if form not in FORMATS:
        raise SpecError(f"There is no format {form!r}.", f"Formats: {', '.join(FORMATS)}.")
    refuse_own_image(bundle)
    if Inspected(bundle).kind == "batch":
        raise SpecError("Templates are written of online endpoints only.", "Use the batch bundle's deploy.sh.")
    write = _bicep if form == "bicep" else _terraform
    return write(*bodies(bundle), autoscale(bundle))


def bodies(bundle: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Requests that azure-ai-ml would send to a fresh workspace, each with its name, without the location."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        from azure.ai.ml import load_online_deployment, load_online_endpoint

        endpoint = load_online_endpoint(bundle / ENDPOINT)
        deployment = load_online_deployment(bundle / DEPLOYMENT)
        first = endpoint._to_rest_online_endpoint(location="").as_dict()
        second = deployment._to_rest_object(location="").as_dict()
    properties = second["properties"]
    properties["codeConfiguration"]["codeId"] = _CODE
    properties["model"] = _asset("models", properties["model"])
    properties["environmentId"] = _asset("environments", properties["environmentId"])
    if cluster := first["properties"].get("compute"):
        first["properties"]["compute"] = _compute(cluster)
    for body, name in ((first, endpoint.name), (second, deployment.name)):
        del body["location"]
        body["name"] = name
    return first, second


def autoscale(bundle: Path) -> dict[str, Any] | None:
    """Azure Monitor's setting on the deployment, with its name; None if the bundle has none."""
    if not (bundle / autoscaling.FILE).is_file():
        return None
    endpoint, deployment = (Inspected(bundle).get(file, "name") for file in (ENDPOINT, DEPLOYMENT))
    name = autoscaling.rules_name(str(endpoint), str(deployment).lower())
    body = autoscaling.setting(bundle, _DEPLOYED, "", name)
    return {"properties": body["properties"], "name": name}


def _asset(kind: str, reference: str) -> str:
    found = re.fullmatch(r"([\w-]+):([\w.-]+)", reference)
    return f"{_WORKSPACE}/{kind}/{found[1]}/versions/{found[2]}" if found else reference


def _compute(reference: str) -> str:
    """Resource id of a cluster that the workspace has by this name, as the client sends it."""
    found = re.fullmatch(r"(?:azureml:)?([\w-]+)", reference)
    return f"{_WORKSPACE}/computes/{found[1]}" if found else reference


def _terraform(endpoint: dict[str, Any], deployment: dict[str, Any], scaling: dict[str, Any] | None) -> dict[str, str]:
    names = {"workspace_id": "Resource id of the workspace.", "code_id": "Resource id of the registered code."}
    names["location"] = "Region of the workspace."
    made = {
        "endpoint": _block(f"{_TYPE}@{API}", endpoint, "${var.workspace_id}") | _KEPT,
        "deployment": _block(f"{_TYPE}/deployments@{API}", deployment, "${azapi_resource.endpoint.id}"),
    }
    if scaling:
        group = '${regex("^/subscriptions/[^/]+/resource[gG]roups/[^/]+", var.workspace_id)}'
        made["autoscale"] = _block(f"{_SCALING}@{autoscaling.API}", scaling, group)
    of_endpoint = {"type": f"{_TYPE}@{API}", "resource_id": "${azapi_resource.endpoint.id}"}
    ready = {"depends_on": ["azapi_resource.deployment"]}
    document = {
        "terraform": {"required_providers": {"azapi": {"source": "Azure/azapi", "version": "~> 2.0"}}},
        "variable": {name: {"type": "string", "description": text} for name, text in names.items()},
        "data": {"azapi_resource": {"live": of_endpoint | {"response_export_values": ["properties.traffic"]} | ready}},
        "locals": {
            "live": "${try({for slot, share in data.azapi_resource.live.output.properties.traffic :"
            " slot => share if share > 0}, {})}"
        },
        "resource": {
            "azapi_resource": made,
            "azapi_update_resource": {
                "traffic": of_endpoint | {"body": {"properties": {"traffic": _live_or(deployment["name"])}}} | _KEPT
            },
        },
    }
    return {"main.tf.json": json.dumps(document, indent=2) + "\n"}


#: What Terraform makes once and then leaves as it is: an update would send the endpoint's traffic of that time.
_KEPT = {"lifecycle": {"ignore_changes": "all"}}


def _live_or(slot: str) -> str:
    """Terraform's expression of the traffic as it is live, or all of it to one slot."""
    return f"${{length(local.live) > 0 ? tomap(local.live) : tomap({{ {json.dumps(slot)} = 100 }})}}"


def _block(kind: str, body: dict[str, Any], parent: str) -> dict[str, Any]:
    """Resource of Terraform's provider azapi."""
    block = {
        "type": kind,
        "name": body["name"],
        "parent_id": parent,
        "location": "${var.location}",
        **({"tags": _hcl(body["tags"])} if "tags" in body else {}),
        "body": _hcl({key: value for key, value in body.items() if key not in ("name", "tags", "identity")}),
    }
    if "identity" in body:
        block["identity"] = _identity(body["identity"])
    return block


def _identity(identity: dict[str, Any]) -> dict[str, Any]:
    ids = list(identity.get("userAssignedIdentities", {}))
    return {"type": identity["type"]} | ({"identity_ids": ids} if ids else {})


def _hcl(value: Any) -> Any:
    """Escape a value for Terraform, except the ids in it."""
    if isinstance(value, dict):
        return {key: _hcl(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_hcl(item) for item in value]
    if not isinstance(value, str):
        return value
    escaped = value.replace("${", "$${").replace("%{", "%%{")
    for marker, name in ((_WORKSPACE, "var.workspace_id"), (_CODE, "var.code_id"), (_DEPLOYED, _DEPLOYED_ID)):
        escaped = escaped.replace(marker, f"${{{name}}}")
    return escaped


def _bicep(endpoint: dict[str, Any], deployment: dict[str, Any], scaling: dict[str, Any] | None) -> dict[str, str]:
    kind = f"{_TYPE}@{API}"
    child = f"{_TYPE}/deployments@{API}"
    rules = f"\nresource autoscale '{_SCALING}@{autoscaling.API}' = {_resource(scaling)}\n" if scaling else ""
    main = f"""// For Bicep 0.38 and later, which knows onlyIfNotExists.
{_WORKSPACE_NAME}
@description('Resource id of the registered code.')
param codeId string

param location string = resourceGroup().location

{_WORKSPACE_ITSELF}
// Sent again, it would take the traffic from every slot.
@onlyIfNotExists()
resource endpoint '{kind}' = {_resource(endpoint, "workspace")}

resource deployment '{child}' = {_resource(deployment, "endpoint")}
{rules}
// The traffic as it is once the deployment is ready.
module live 'live.bicep' = {{
  name: {_literal(f"live-{endpoint['name']}", 1)}
  params: {{
    workspaceName: workspaceName
  }}
  dependsOn: [
    deployment
  ]
}}

module traffic 'traffic.bicep' = {{
  name: {_literal(f"traffic-{endpoint['name']}", 1)}
  params: {{
    workspaceName: workspaceName
    location: location
    live: live.outputs.traffic
    mirrored: live.outputs.mirrored
  }}
}}
"""
    return {
        "main.bicep": main,
        "live.bicep": _live_bicep(kind, endpoint["name"]),
        "traffic.bicep": _traffic_bicep(kind, endpoint, deployment["name"]),
    }


_WORKSPACE_NAME = """@description('Name of the workspace.')
param workspaceName string
"""
_WORKSPACE_ITSELF = f"""resource workspace 'Microsoft.MachineLearningServices/workspaces@{API}' existing = {{
  name: workspaceName
}}
"""


def _live_bicep(kind: str, name: str) -> str:
    return f"""// Reads the endpoint's traffic.
{_WORKSPACE_NAME}
{_WORKSPACE_ITSELF}
resource endpoint '{kind}' existing = {{
  parent: workspace
  name: {_literal(name, 1)}
}}

output traffic object = endpoint.properties.?traffic ?? {{}}
output mirrored object = endpoint.properties.?mirrorTraffic ?? {{}}
"""


def _traffic_bicep(kind: str, endpoint: dict[str, Any], slot: str) -> str:
    changed = endpoint | {"properties": endpoint["properties"] | {"traffic": _LIVE, "mirrorTraffic": _MIRRORED}}
    return f"""// Sets the endpoint's traffic: as it is live, or all of it to this deployment if no slot has any.
{_WORKSPACE_NAME}
param location string

@description('Percentage of each slot.')
param live object

@description('Mirrored percentage of each slot.')
param mirrored object

var taking = toObject(filter(items(live), slot => slot.value > 0), slot => slot.key, slot => slot.value)

{_WORKSPACE_ITSELF}
resource endpoint '{kind}' = {_resource(changed, "workspace")}
""".replace(f"'{_LIVE}'", f"empty(taking) ? {{ {_key(slot)}: 100 }} : taking").replace(f"'{_MIRRORED}'", "mirrored")


def _resource(body: dict[str, Any], parent: str = "") -> str:
    fields = [f"  parent: {parent}"] if parent else []
    fields += ["  location: location", *(f"  {key}: {_literal(value, 1)}" for key, value in body.items())]
    return "\n".join(["{", *fields, "}"])


def _literal(value: Any, depth: int) -> str:
    """Format a Bicep expression; strings in single quotes, with only the given ids expanded."""
    pad = "  " * (depth + 1)
    if isinstance(value, dict):
        rows = [f"{pad}{_key(key)}: {_literal(item, depth + 1)}" for key, item in value.items()]
        return "{\n" + "\n".join([*rows, "  " * depth + "}"]) if rows else "{}"
    if isinstance(value, list):
        rows = [f"{pad}{_literal(item, depth + 1)}" for item in value]
        return "[\n" + "\n".join([*rows, "  " * depth + "]"]) if rows else "[]"
    if not isinstance(value, str):
        return json.dumps(value)
    if value in (_CODE, _DEPLOYED):
        return {_CODE: "codeId", _DEPLOYED: "deployment.id"}[value]
    escaped = value.replace("\\", "\\\\").replace("'", "\\'").replace("${", "\\${").replace("\n", "\\n")
    return "'" + escaped.replace(_WORKSPACE, "${workspace.id}") + "'"


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z_]\w*", key) else _literal(key, 0)
