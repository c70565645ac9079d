"""Rules on KAITO's Workspace over a pod template: what its schema leaves open, and its webhook or the cluster refuses.

By kaito-project/kaito (Apache-2.0): api/v1beta1/workspace_validation.go, pkg/workspace/manifests, pkg/utils/consts.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from mii_azure.bundle.bundle_view import WORKSPACE, Inspected, Problem
from mii_azure.bundle.own_image import KAITO_PORT, KAITO_SIZES
from mii_azure.bundle.render import content_hash, image_version
from mii_azure.checks.kinds import quantity
from mii_azure.checks.refusals import VARIABLE, image_in_capitals
from mii_azure.checks.serving import weigh
from mii_azure.errors import UnknownInstanceType
from mii_azure.hardware.skus import find_sku
from mii_azure.planning.budget import device_of
from mii_azure.planning.latency import start

_VERSIONS = ("kaito.sh/v1beta1", "kaito.sh/v1alpha1")
_NAME = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_POD = ("inference", "template", "spec")
_CONTAINERS = (*_POD, "containers")
#: Fields of a probe with the least value of each, and the default of Kubernetes.
_PROBE = {
    "initialDelaySeconds": (0, 0),
    "periodSeconds": (1, 10),
    "timeoutSeconds": (1, 1),
    "successThreshold": (1, 1),
    "failureThreshold": (1, 3),
}
_PROBES = ("livenessProbe", "readinessProbe")


def _containers(bundle: Inspected) -> list[dict[str, Any]]:
    return _entries(bundle.section(WORKSPACE, *_POD), _CONTAINERS[-1])


def _entries(value: Mapping[Any, Any], key: str) -> list[dict[str, Any]]:
    """Mappings in a mapping's list; none of anything else."""
    given = value.get(key)
    return [each for each in given if isinstance(each, dict)] if isinstance(given, list) else []


def _section(value: Any, *keys: str) -> dict[str, Any]:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def form(bundle: Inspected) -> Iterator[Problem]:
    """Require a version that is served, a name that a service can have, and a pod of containers that have images."""
    if not bundle.readable(WORKSPACE):
        return
    if (kind := bundle.get(WORKSPACE, "kind")) != "Workspace":
        yield Problem(f"kind is {kind!r}.", "Write Workspace.", WORKSPACE, ("kind",))
    version, name = bundle.get(WORKSPACE, "apiVersion"), bundle.get(WORKSPACE, "metadata", "name")
    if version not in _VERSIONS:
        yield Problem(f"apiVersion is {version!r}.", f"Write {_VERSIONS[0]}.", WORKSPACE, ("apiVersion",))
    if not (isinstance(name, str) and _NAME.fullmatch(name)):
        remedy = "Small letters, digits and hyphens, 63 at most, a letter first: the service has the same name."
        yield Problem(f"Kubernetes refuses the name {name!r}.", remedy, WORKSPACE, ("metadata", "name"))
    inference = bundle.section(WORKSPACE, "inference")
    if bool(inference.get("preset")) == bool(inference.get("template")):
        told = "both a preset and" if inference.get("preset") else "neither a preset nor"
        message = f"inference has {told} a template; KAITO takes one of them."
        yield Problem(message, "Give one of them.", WORKSPACE, ("inference",))
    elif inference.get("template") and not all(each.get("image") for each in _containers(bundle) or [{}]):
        yield Problem("The pod has no container with an image.", "Write one.", WORKSPACE, _CONTAINERS)
    elif wrong := next(filter(None, map(_misnamed, _containers(bundle))), ""):
        yield Problem(wrong, "Small letters, digits and hyphens.", WORKSPACE, _CONTAINERS)


def _misnamed(container: dict[str, Any]) -> str:
    """Name of a container, or of its image, that Kubernetes refuses."""
    name, image = container.get("name"), container.get("image")
    if not (isinstance(name, str) and _LABEL.fullmatch(name)):
        return f"A container is called {name!r}."
    return f"{image} is no name of an image." if image_in_capitals(image) else ""


def resource(bundle: Inspected) -> Iterator[Problem]:
    """Judge the kind of node that KAITO makes, and the labels that it looks for."""
    if not bundle.readable(WORKSPACE):
        return
    labels = ("resource", "labelSelector")
    if not bundle.section(WORKSPACE, *labels, "matchLabels") and not bundle.get(WORKSPACE, *labels, "matchExpressions"):
        message = "resource.labelSelector selects nothing, which KAITO refuses."
        yield Problem(message, "Write matchLabels with a label of your own.", WORKSPACE, labels)
    place = ("resource", "instanceType")
    named = bundle.get(WORKSPACE, *place)
    if isinstance(named, str) and named and not KAITO_SIZES.match(named):
        message = f"KAITO makes nodes of the N and D series only, and {named} is neither."
        yield Problem(message, "Name such a size, or leave it out where the cluster has its nodes.", WORKSPACE, place)
    count = bundle.number(WORKSPACE, "resource", "count")
    if count is not None and count != 1 and bundle.section(WORKSPACE, "inference", "template"):
        message = f"resource.count is {count}, and KAITO's service reaches the first pod only."
        yield Problem(message, "Write 1, and make several workspaces of it.", WORKSPACE, ("resource", "count"))


def port(bundle: Inspected) -> Iterator[Problem]:
    """Require that the container listens where KAITO's service asks, and is probed there."""
    for container in _containers(bundle)[:1]:
        listed = [each.get("containerPort") for each in _entries(container, "ports")]
        values = {str(each.get("name")): each.get("value") for each in _entries(container, "env")}
        said = values.get("MII_AZURE_HTTP_PORT", str(KAITO_PORT) if bundle.loose is not None else "5001")
        if (KAITO_PORT not in listed and listed) or said != str(KAITO_PORT):
            given = said if said != str(KAITO_PORT) else ", ".join(map(str, listed))
            message = f"The container listens on {given}, and KAITO's service asks {KAITO_PORT}."
            yield Problem(message, f"Have it listen on {KAITO_PORT}.", WORKSPACE, _CONTAINERS)
            return
        for probe in _PROBES:
            asked = _section(container, probe, "httpGet").get("port")
            if asked not in (None, KAITO_PORT, "http"):
                message = f"{probe} asks port {asked!r}, and the container listens on {KAITO_PORT}."
                yield Problem(message, f"Write {KAITO_PORT}.", WORKSPACE, _CONTAINERS)
                return


def probes(bundle: Inspected) -> Iterator[Problem]:
    folder = bundle.model_folder
    for container in _containers(bundle)[:1]:
        for probe in _PROBES:
            given = _section(container, probe)
            if reason := _bad_probe(probe, given):
                yield Problem(reason, "Write it, as long as the start takes.", WORKSPACE, _CONTAINERS)
                return
            numbers = {key: given.get(key, default) for key, (_, default) in _PROBE.items()}
            patience = numbers["initialDelaySeconds"] + numbers["periodSeconds"] * numbers["failureThreshold"]
            seconds = start(weigh(folder), _device(bundle)).seconds if folder else 0
            if patience < seconds:
                message = f"{probe} gives up after {patience} s; loading the model takes about {seconds} s."
                yield Problem(message, "Raise its failureThreshold.", WORKSPACE, _CONTAINERS)
                return


def _bad_probe(probe: str, given: dict[str, Any]) -> str:
    if not given:
        return f"{probe} is missing, so that Kubernetes takes a container for ready that still loads its model."
    for key, (least, _) in _PROBE.items():
        value = given.get(key)
        if value is not None and (type(value) is not int or value < least):
            return f"{probe}.{key} is {value!r}, and Kubernetes takes whole numbers from {least}."
    if probe == _PROBES[0] and given.get("successThreshold", 1) != 1:
        return f"{probe}.successThreshold is {given['successThreshold']}, and Kubernetes takes 1 only."
    return ""


def _device(bundle: Inspected) -> str:
    try:
        return device_of(find_sku(str(bundle.get(WORKSPACE, "resource", "instanceType"))))
    except UnknownInstanceType:
        return "cuda"


def amounts(bundle: Inspected) -> Iterator[Problem]:
    """Judge requests and limits: amounts as text, requests no higher, GPUs alike and as many as a node has."""
    for container in _containers(bundle)[:1]:
        sides = {side: _section(container, "resources", side) for side in ("requests", "limits")}
        for side, given in sides.items():
            wrong = [name for name, value in given.items() if not quantity(str(value))]
            if wrong:
                message = f"resources.{side}.{wrong[0]} is {given[wrong[0]]!r}, which is no amount of it."
                yield Problem(message, 'Write text: "1", "500m", "8Gi".', WORKSPACE, _CONTAINERS)
                return
        for name, value in sides["requests"].items():
            asked, allowed = quantity(str(value)), quantity(str(sides["limits"].get(name, value)))
            if asked and allowed and (asked > allowed or ("/gpu" in name and asked != allowed)):
                message = f"{value} of {name} are requested and {sides['limits'][name]} allowed; no pod may have that."
                yield Problem(message, "Raise the limit; of GPUs, give both the same.", WORKSPACE, _CONTAINERS)
                return
        yield from _gpus(bundle, sides["limits"].get("nvidia.com/gpu"))


def _gpus(bundle: Inspected, wanted: Any) -> Iterator[Problem]:
    try:
        sku = find_sku(str(bundle.get(WORKSPACE, "resource", "instanceType")))
    except UnknownInstanceType:
        return
    asked = quantity(str(wanted or "0")) or 0
    if asked > sku.whole_gpus:
        message = f"The pod wants {wanted} GPUs, and {sku.name} has {sku.whole_gpus}: it is never scheduled."
        yield Problem(message, "Name a larger size.", WORKSPACE, _CONTAINERS)
    elif sku.gpu and not asked and bundle.loose is None:
        message = f"The pod asks for none of the GPUs of {sku.name}, so it sees none."
        yield Problem(message, 'Write nvidia.com/gpu: "1".', WORKSPACE, _CONTAINERS)


def variables(bundle: Inspected) -> Iterator[Problem]:
    for container in _containers(bundle):
        for each in _entries(container, "env"):
            value, name = each.get("value"), each.get("name")
            if not (isinstance(name, str) and VARIABLE.fullmatch(name)):
                message = f"{name!r} is no name of an environment variable."
                remedy = "Letters, digits, underscores, hyphens and dots, no digit first."
                yield Problem(message, remedy, WORKSPACE, _CONTAINERS)
                return
            if value is not None and not isinstance(value, str):
                message = f"The variable {each.get('name')} is {value!r}, not a string; Kubernetes refuses it."
                yield Problem(message, "Put it in quotes.", WORKSPACE, _CONTAINERS)
                return


def stale_image(bundle: Inspected) -> Iterator[Problem]:
    """Find an image whose tag is that of other content: the right one would never be built."""
    if bundle.loose is not None or not bundle.readable(WORKSPACE):
        return
    files: dict[str, str] = bundle.manifest["files"]
    weights = content_hash({path: digest for path, digest in files.items() if path.startswith("model/")})
    built = {path: digest for path, digest in files.items() if path.startswith(("environment/", "code/"))}
    wanted = image_version(built, weights)
    for container in _containers(bundle)[:1]:
        image = str(container.get("image"))
        if image.rpartition(":")[2] != wanted:
            message = f"The image is {image}; what it is built of here is {wanted}."
            yield Problem(message, "Generate the bundle again.", WORKSPACE, _CONTAINERS)
