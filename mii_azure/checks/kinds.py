"""Rules on Kubernetes online deployments and batch deployments, whose numbers azure-ai-ml does not read."""

import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from mii_azure.bundle.bundle_view import DEPLOYMENT, ENDPOINT, LOCK, Inspected, Problem
from mii_azure.bundle.lockfile import pins
from mii_azure.platform.limits import NAMES_LENGTH

_GPU = "nvidia.com/gpu"
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)(m|[KMGTPE]i|[kMGTPE])?")
_UNITS = {"": Decimal(1), "m": Decimal("0.001"), "k": Decimal(1000)}
_UNITS |= {unit: Decimal(1000) ** power for power, unit in enumerate("MGTPE", start=2)}
_UNITS |= {f"{unit}i": Decimal(1024) ** power for power, unit in enumerate("KMGTPE", start=1)}


def quantity(value: Any) -> Decimal | None:
    """Parse a Kubernetes quantity ("500m", "8Gi"); None if it is not one."""
    found = _QUANTITY.fullmatch(value) if isinstance(value, str) else None
    return Decimal(found[1]) * _UNITS[found[2] or ""] if found else None


def _resources(bundle: Inspected) -> Iterator[tuple[str, str, Any]]:
    for side in ("requests", "limits"):
        for name, value in bundle.section(DEPLOYMENT, "resources", side).items():
            yield side, str(name), value


def quantities(bundle: Inspected) -> Iterator[Problem]:
    for side, name, value in _resources(bundle) if bundle.kind == "kubernetes" else ():
        amount = quantity(value)
        whole = name != _GPU or (amount is not None and amount == amount.to_integral_value())
        if amount is None or not amount or not whole:
            remedy = 'Write text: "1" for GPUs and cores, "500m" for a share of a core, "8Gi" for memory.'
            message = f"resources.{side}.{name} is {value!r}, which Kubernetes does not read as an amount of it."
            yield Problem(message, remedy, DEPLOYMENT, ("resources", side, name))


def requests_above_limits(bundle: Inspected) -> Iterator[Problem]:
    limits = bundle.section(DEPLOYMENT, "resources", "limits") if bundle.kind == "kubernetes" else {}
    for name, value in bundle.section(DEPLOYMENT, "resources", "requests").items():
        asked, allowed = quantity(value), quantity(limits.get(name))
        if asked is None or allowed is None:
            continue
        if asked > allowed:
            message = f"resources.requests.{name} is {value} and its limit {limits[name]}; Kubernetes refuses the pod."
            yield Problem(message, "Raise the limit.", DEPLOYMENT, ("resources", "requests", str(name)))
        elif name == _GPU and asked != allowed and asked == asked.to_integral_value():
            message = f"{value} GPUs are requested and {limits[name]} allowed; Kubernetes wants the same number."
            yield Problem(message, "Give both the same.", DEPLOYMENT, ("resources", "limits", _GPU))


def names_together(bundle: Inspected) -> Iterator[Problem]:
    endpoint, name = bundle.get(DEPLOYMENT, "endpoint_name"), bundle.get(DEPLOYMENT, "name")
    if bundle.kind != "kubernetes" or not isinstance(endpoint, str) or not isinstance(name, str):
        return
    low, high = NAMES_LENGTH
    count = len(endpoint) + len(name)
    if not low <= count <= high:
        message = f"The names of endpoint and deployment have {count} characters together."
        yield Problem(message, f"Kubernetes endpoints take {low} to {high}.", DEPLOYMENT, ("name",))


def cluster(bundle: Inspected) -> Iterator[Problem]:
    """Require that the endpoint names the attached cluster; without it Azure makes a managed one."""
    compute = bundle.get(ENDPOINT, "compute")
    if bundle.kind == "kubernetes" and bundle.readable(ENDPOINT, DEPLOYMENT) and not compute:
        message = "The deployment is for Kubernetes, and the endpoint names no cluster."
        yield Problem(message, "Write compute: azureml:NAME in the endpoint's file.", ENDPOINT, ("compute",))
    elif compute and bundle.readable(DEPLOYMENT) and bundle.get(DEPLOYMENT, "type") != "kubernetes":
        message = "The endpoint is on Kubernetes, and the deployment is for a managed one."
        yield Problem(message, "Write type: kubernetes.", DEPLOYMENT, ("type",))


def scale(bundle: Inspected) -> Iterator[Problem]:
    if bundle.get(DEPLOYMENT, "scale_settings", "type") != "target_utilization":
        return
    place = ("scale_settings", "target_utilization_percentage")
    share = bundle.number(DEPLOYMENT, *place)
    if share is not None and not 1 <= share <= 100:
        yield Problem(f"target_utilization_percentage is {share}.", "Give 1 to 100.", DEPLOYMENT, place)
    low, high = (bundle.number(DEPLOYMENT, "scale_settings", key) for key in ("min_instances", "max_instances"))
    if low is not None and high is not None and not 1 <= low <= high:
        message = f"min_instances is {low} and max_instances {high}."
        yield Problem(message, "At least 1, and no more than max_instances.", DEPLOYMENT, ("scale_settings",))


# Minimum of each number of a batch deployment; -1 failed files means that any number may fail. With `type: model` all
# but the resources stand under `settings`.
_LEAST: tuple[tuple[tuple[str, ...], int], ...] = (
    (("resources", "instance_count"), 1),
    *(
        ((*above, *keys), least)
        for above in ((), ("settings",))
        for keys, least in (
            (("mini_batch_size",), 1),
            (("max_concurrency_per_instance",), 1),
            (("error_threshold",), -1),
            (("retry_settings", "max_retries"), 0),
            (("retry_settings", "timeout"), 1),
        )
    ),
)
_NEEDED = ("azureml-core", "azureml-dataset-runtime")


def batch_numbers(bundle: Inspected) -> Iterator[Problem]:
    for keys, least in _LEAST if bundle.kind == "batch" else ():
        value = bundle.number(DEPLOYMENT, *keys)
        if value is not None and value < least:
            yield Problem(f"{'.'.join(keys)} is {value}.", f"Give {least} or more.", DEPLOYMENT, keys)


def batch_compute(bundle: Inspected) -> Iterator[Problem]:
    if bundle.kind != "batch" or not bundle.readable(DEPLOYMENT) or bundle.loose is not None:
        return
    # A pipeline component's steps may each name a cluster of their own.
    if not bundle.get(DEPLOYMENT, "compute") and bundle.get(DEPLOYMENT, "type") != "pipeline":
        message = "The deployment names no compute cluster to run on."
        yield Problem(message, "Write compute: azureml:NAME.", DEPLOYMENT, ("compute",))


def batch_default(bundle: Inspected) -> Iterator[Problem]:
    default, name = bundle.get(ENDPOINT, "defaults", "deployment_name"), bundle.get(DEPLOYMENT, "name")
    if bundle.kind == "batch" and bundle.loose is None and default and default != name:
        message = f"The endpoint's default deployment is {default!r}, which this folder does not create."
        yield Problem(message, f"Write {name}.", ENDPOINT, ("defaults", "deployment_name"))


def batch_sign_in(bundle: Inspected) -> Iterator[Problem]:
    """Require Microsoft Entra's tokens, the only sign-in of batch endpoints; azure-ai-ml sends what is written."""
    mode = bundle.get(ENDPOINT, "auth_mode")
    if bundle.kind == "batch" and mode is not None and str(mode).lower() != "aad_token":
        message = f"auth_mode is {mode!r}; batch endpoints take aad_token only."
        yield Problem(message, "Write auth_mode: aad_token, or leave it out.", ENDPOINT, ("auth_mode",))


def batch_logging(bundle: Inspected) -> Iterator[Problem]:
    for keys in (("logging_level",), ("settings", "logging_level")) if bundle.kind == "batch" else ():
        level = bundle.get(DEPLOYMENT, *keys)
        if level is not None and str(level).lower() not in ("warning", "info", "debug"):
            yield Problem(f"logging_level is {level!r}.", "Write warning, info or debug.", DEPLOYMENT, keys)


def batch_packages(bundle: Inspected) -> Iterator[Problem]:
    """Require the packages by which Azure ML runs a batch script, where the environment is a lock."""
    lock = bundle.text(LOCK) if bundle.kind == "batch" else None
    if lock is None:
        return
    missing = [name for name in _NEEDED if name not in {pin.name.lower().replace("_", "-") for pin in pins(lock)}]
    if missing:
        message = f"The image installs no {' and no '.join(missing)}, by which Azure ML runs batch scripts."
        yield Problem(message, "Generate the bundle again with --kind batch.", LOCK)
