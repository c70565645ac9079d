"""YAML of other origin, and ways to break it that azure-ai-ml accepts, each with the rule that must notice."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import yaml

Files = dict[str, dict[str, Any]]

_DEPLOYMENT: dict[str, Any] = {
    "name": "blue",
    "endpoint_name": "my-endpoint",
    "model": "azureml:my-model:1",
    "code_configuration": {"code": "onlinescoring", "scoring_script": "score.py"},
    "environment": "azureml:my-env:1",
}
_ONLINE: dict[str, Any] = {
    "instance_count": 1,
    "request_settings": {"request_timeout_ms": 90000, "max_concurrent_requests_per_instance": 4},
    "liveness_probe": {"initial_delay": 300, "failure_threshold": 40},
    "readiness_probe": {"initial_delay": 10, "failure_threshold": 60},
}
_RESOURCES = {
    "requests": {"cpu": "2", "memory": "8Gi", "nvidia.com/gpu": "1"},
    "limits": {"cpu": "4", "memory": "16Gi", "nvidia.com/gpu": "1"},
}
_BATCH = {
    "mini_batch_size": 10,
    "max_concurrency_per_instance": 1,
    "retry_settings": {"max_retries": 3, "timeout": 300},
    "error_threshold": -1,
    "logging_level": "info",
}

#: Files as azureml-examples has them, by kind.
KINDS: dict[str, Files] = {
    "managed": {
        "endpoint.yml": {"name": "my-endpoint", "auth_mode": "key"},
        "blue.yml": _DEPLOYMENT | _ONLINE | {"instance_type": "Standard_DS3_v2"},
    },
    "kubernetes": {
        "endpoint.yml": {"name": "my-endpoint", "auth_mode": "key", "compute": "azureml:cluster"},
        "blue.yml": _DEPLOYMENT | _ONLINE | {"type": "kubernetes", "instance_type": "gpu", "resources": _RESOURCES},
    },
    "batch": {
        "endpoint.yml": {
            "$schema": "https://azuremlschemas.azureedge.net/latest/batchEndpoint.schema.json",
            "name": "my-endpoint",
            "defaults": {"deployment_name": "blue"},
        },
        "blue.yml": _DEPLOYMENT
        | {
            "$schema": "https://azuremlschemas.azureedge.net/latest/modelBatchDeployment.schema.json",
            "type": "model",
            "compute": "azureml:cluster",
            "resources": {"instance_count": 2},
            "settings": _BATCH,
        },
    },
    "flat batch": {
        "blue.yml": _DEPLOYMENT
        | {
            "$schema": "https://azuremlschemas.azureedge.net/latest/batchDeployment.schema.json",
            "compute": "azureml:cluster",
            **_BATCH,
        },
    },
    "environment": {"environment.yml": {"name": "my-env", "version": "1", "image": "python:3.11"}},
    "model": {"model.yml": {"name": "my-model", "version": "1", "type": "custom_model", "path": "weights"}},
}


class Case(NamedTuple):
    """A kind of files, the rule, the file that breaks, and the place in it with its new value; None removes it."""

    kind: str
    rule: str
    file: str
    keys: tuple[str, ...]
    value: Any


def write(folder: Path, kind: str, change: Callable[[Files], None] = lambda files: None) -> None:
    """Write a kind's files, changed, with the folders that they name."""
    files = copy.deepcopy(KINDS[kind])
    change(files)
    for name, content in files.items():
        (folder / name).write_text(yaml.safe_dump(content))
    for name in ("onlinescoring", "weights"):
        (folder / name).mkdir(exist_ok=True)
    for name in ("onlinescoring", "weights"):
        (folder / name / "score.py").write_text("def init(): ...\ndef run(data): ...\n")


def change(case: Case) -> Callable[[Files], None]:
    def apply(files: Files) -> None:
        place = files[case.file]
        for key in case.keys[:-1]:
            place = place.setdefault(key, {})
        if case.value is None:
            del place[case.keys[-1]]
        else:
            place[case.keys[-1]] = case.value

    return apply


_CONDA = {"name": "env", "dependencies": ["python=3.11"]}
_ARM = "azureml:/subscriptions/s/resourceGroups/g/providers/Microsoft.MachineLearningServices/workspaces/w/models/m"


def _of(kind: str, rule: str, place: str, value: Any, file: str = "blue.yml") -> Case:
    return Case(kind, rule, file, tuple(place.split("/")), value)


_UAI = "/subscriptions/s/resourceGroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/i"


def _config(path: str = "/score", port: int = 5001) -> dict[str, Any]:
    routes = ("liveness_route", "readiness_route", "scoring_route")
    return {route: {"port": 5001, "path": "/"} for route in routes[:2]} | {routes[2]: {"port": port, "path": path}}


def _environment(path: str) -> dict[str, Any]:
    return {"name": "e", "version": "1", "image": "python:3.11", "inference_config": _config(path)}


#: What breaks in YAML that stands alone; azure-ai-ml accepts each of them.
LOOSE: dict[str, Case] = {
    "a name that the client does not judge": _of("managed", "MII102", "name", "a" * 40),
    "a long name of a batch deployment, which the client sends": _of("batch", "MII102", "name", "a" * 40),
    "a name in capitals": _of("managed", "MII103", "name", "Blue"),
    "no endpoint": _of("managed", "MII131", "endpoint_name", ""),
    "an endpoint with a blank in its name": _of("flat batch", "MII102", "endpoint_name", "my endpoint"),
    "a placeholder": _of("managed", "MII120", "instance_type", "{{SKU}}"),
    "a model of no version": _of("managed", "MII121", "model", "azureml:my-model"),
    "a model of an empty version": _of("managed", "MII121", "model", "azureml:my-model:"),
    "a model of a registry, of no version": _of(
        "managed", "MII121", "model", "azureml://registries/R/models/M/versions/"
    ),
    "an environment for a model": _of("managed", "MII121", "model", "azureml://registries/R/environments/M/versions/1"),
    "an environment of no version": _of("managed", "MII121", "environment", "azureml://registries/R/environments/E"),
    "a script and no environment": _of("managed", "MII122", "environment", None),
    "an image and a build": _of(
        "managed",
        "MII123",
        "environment",
        {"image": "python:3.11", "build": {"path": "onlinescoring", "dockerfile_path": "score.py"}},
    ),
    "an image of no name": _of("environment", "MII123", "image", "", "environment.yml"),
    "an image in capitals": _of("managed", "MII123", "environment", {"name": "e", "image": "mcr.microsoft.com/A/B:1"}),
    "a build without a Dockerfile": _of("managed", "MII108", "environment", {"build": {"path": "onlinescoring"}}),
    "traffic to no slot": _of("managed", "MII124", "traffic/green", 100, "endpoint.yml"),
    "a route without a slash": _of("managed", "MII125", "environment", _environment(path="score")),
    "port 0": _of("environment", "MII125", "inference_config", _config(port=0), "environment.yml"),
    "a script above its folder": _of("managed", "MII126", "code_configuration/scoring_script", "../weights/score.py"),
    "where the model is": _of("managed", "MII127", "environment_variables/AZUREML_MODEL_DIR", "/m"),
    "a variable with a blank in its name": _of("managed", "MII127", "environment_variables/MY VAR", "1"),
    "a model over the root": _of("managed", "MII128", "model_mount_path", "/"),
    "a model over the root, by way of a folder": _of("managed", "MII128", "model_mount_path", "/var/.."),
    "a tag of a slash": _of("managed", "MII129", "tags/a*b", "x"),
    "a tag that is a number": _of("managed", "MII129", "tags/year", 2026),
    "a long tag": _of("managed", "MII129", "tags/told", "x" * 257, "endpoint.yml"),
    "many tags": _of("managed", "MII129", "tags", {f"t{number}": "x" for number in range(51)}, "endpoint.yml"),
    "a cluster with a blank in its name": _of("flat batch", "MII130", "compute", "azureml:my cluster"),
    "an instance type of virtual machines on a cluster": _of(
        "kubernetes", "MII130", "instance_type", "Standard_DS3_v2"
    ),
    "keys for batches": _of("batch", "MII706", "auth_mode", "key", "endpoint.yml"),
    "the system's identity with ids of others": _of(
        "managed",
        "MII116",
        "identity",
        {"type": "system_assigned", "user_assigned_identities": [{"resource_id": _UAI}]},
        "endpoint.yml",
    ),
    "a user's token on Kubernetes": _of("kubernetes", "MII606", "auth_mode", "aad_token", "endpoint.yml"),
    "a user's token on Kubernetes, in capitals": _of("kubernetes", "MII606", "auth_mode", "AAD_TOKEN", "endpoint.yml"),
    "a mirror on Kubernetes": _of("kubernetes", "MII606", "mirror_traffic/blue", 10, "endpoint.yml"),
    "more than busy": _of(
        "kubernetes",
        "MII605",
        "scale_settings",
        {"type": "target_utilization", "min_instances": 1, "max_instances": 2, "target_utilization_percentage": 170},
    ),
    "5 s a request": _of("managed", "MII216", "request_settings/request_timeout_ms", None),
    "one request at a time": _of("managed", "MII216", "request_settings/max_concurrent_requests_per_instance", None),
    "a number in the environment": _of("managed", "MII107", "environment_variables/A", 1),
    "a script that is not there": _of("managed", "MII108", "code_configuration/scoring_script", "other.py"),
    "code that is not there": _of("managed", "MII108", "code_configuration/code", "src"),
    "a script without its folder": _of("managed", "MII108", "code_configuration/code", None),
    "half of the traffic": _of("managed", "MII110", "traffic/blue", 50, "endpoint.yml"),
    "a mirror of 80 %": _of("managed", "MII110", "mirror_traffic/blue", 80, "endpoint.yml"),
    "packages and no image": _of("managed", "MII111", "environment", {"conda_file": _CONDA}),
    "an environment with a blank in its name": _of("environment", "MII112", "name", "my env", "environment.yml"),
    "a model with a slash in its name": _of("model", "MII112", "name", "my/model", "model.yml"),
    "the latest of a registry": _of("managed", "MII113", "model", "azureml://registries/R/models/M/labels/latest"),
    "traffic in capitals": _of("managed", "MII114", "traffic/Blue", 100, "endpoint.yml"),
    "a token as it is": _of("managed", "MII115", "environment_variables/HF_TOKEN", "abc"),
    "an identity without its id": _of("managed", "MII116", "identity/type", "user_assigned", "endpoint.yml"),
    "a model of one subscription": _of("managed", "MII118", "model", _ARM + "/versions/1"),
    "a folder of a datastore for a model": _of("managed", "MII119", "model", "azureml://datastores/d/paths/p"),
    "the output of a job for a model": _of("managed", "MII119", "model", "azureml://jobs/j/outputs/artifacts/paths/m"),
    "an instance type that does not exist": _of("managed", "MII201", "instance_type", "Standard_NC7as_T4_v3"),
    "an instance type that Azure retired": _of("managed", "MII202", "instance_type", "Standard_NC6s_v3"),
    "an instance type without its first word": _of("managed", "MII201", "instance_type", "DS3_v2"),
    "no instances, in quotes": _of("managed", "MII204", "instance_count", "0"),
    "no instances": _of("managed", "MII204", "instance_count", 0),
    "a probe of nothing": _of("managed", "MII205", "readiness_probe/period", 0),
    "liveness after two successes": _of("managed", "MII205", "liveness_probe/success_threshold", 2),
    "a probe too early": _of("managed", "MII212", "liveness_probe", None),
    "a request of 900 s": _of("managed", "MII207", "request_settings/request_timeout_ms", 900000),
    "no concurrency": _of("managed", "MII208", "request_settings/max_concurrent_requests_per_instance", 0),
    "a worker that is killed": _of("managed", "MII209", "environment_variables/WORKER_TIMEOUT", "30"),
    "a time in the queue": _of("managed", "MII213", "request_settings/max_queue_wait_ms", 500),
    "the latest image": _of("environment", "MII403", "image", "python:latest", "environment.yml"),
    "an image that gets no patches": _of(
        "environment", "MII407", "image", f"a/b@sha256:{'a1' * 32}", "environment.yml"
    ),
    "an image that conda solves": _of("environment", "MII404", "conda_file", _CONDA, "environment.yml"),
    "a request of 180 s on Kubernetes": _of("kubernetes", "MII207", "request_settings/request_timeout_ms", 180000),
    "an amount that is none": _of("kubernetes", "MII601", "resources/limits/cpu", "lots"),
    "half of a GPU": _of("kubernetes", "MII601", "resources/requests/nvidia.com*gpu", "500m"),
    "more than the limit": _of("kubernetes", "MII602", "resources/requests/cpu", "8"),
    "GPUs that differ": _of("kubernetes", "MII602", "resources/limits/nvidia.com*gpu", "2"),
    "no cluster for Kubernetes": _of("kubernetes", "MII604", "compute", None, "endpoint.yml"),
    "more instances at least than at most": _of(
        "kubernetes",
        "MII605",
        "scale_settings",
        {"type": "target_utilization", "min_instances": 3, "max_instances": 2},
    ),
    "batches of nothing": _of("batch", "MII701", "settings/mini_batch_size", 0),
    "no time for a batch": _of("batch", "MII701", "settings/retry_settings/timeout", 0),
    "fewer failures than any": _of("batch", "MII701", "settings/error_threshold", -2),
    "the same in the older form": _of("flat batch", "MII701", "error_threshold", -2),
    "no cluster for batches": _of("flat batch", "MII131", "compute", None),
    "a log of everything": _of("batch", "MII704", "settings/logging_level", "trace"),
}
LOOSE = {what: case._replace(keys=tuple(k.replace("*", "/") for k in case.keys)) for what, case in LOOSE.items()}
