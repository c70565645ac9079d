"""Rules on YAML that azure-ai-ml sends as it is and Azure refuses, or whose first request fails."""

import re
from collections.abc import Iterator
from pathlib import PurePosixPath, PureWindowsPath
from posixpath import normpath
from typing import Any

from mii_azure.bundle.bundle_view import DEPLOYMENT, ENDPOINT, ENVIRONMENT, MODEL, Inspected, Problem
from mii_azure.platform.limits import MAX_TAGS, TAG_NAME_LENGTH, TAG_VALUE_LENGTH

#: Of an asset; a job's output and a path in a datastore have no versions, whatever their folders are called.
_ASSET = r"azureml:/{1,2}(?!/|jobs/|.*/(?:datastores|paths)/).*/(models|environments)/[^/]+"
_UNVERSIONED = re.compile(rf"azureml:[^:/@]+:?|{_ASSET}(/versions)?/?", re.IGNORECASE | re.DOTALL)
_KIND = re.compile(rf"{_ASSET}/(versions|labels)/[^/]+", re.IGNORECASE)
#: Characters that names of a resource's tags must not have.
_NOT_IN_TAGS = frozenset("<>%&\\?/")
_OF_CLUSTER = re.compile(r"[a-z0-9]([-.a-z0-9]*[a-z0-9])?")
_OF_AZURE = ("AZUREML_MODEL_DIR",)  # where Azure ML mounts the model
VARIABLE = re.compile(r"[-._a-zA-Z][-._a-zA-Z0-9]*")  # Kubernetes' rule for names in a container's environment
_COMPUTE = re.compile(r"(azureml:)?[a-zA-Z0-9][-a-zA-Z0-9_]*")
#: What people put where a value belongs, for a script to fill in; `${{...}}` is a reference of Azure's own.
_PLACEHOLDER = re.compile(
    r"(?<!\$)\{\{ *\w+ *\}\}|<[A-Z][A-Z0-9_]+>|: *[\"']?<[\w-]+>[\"']? *$|\{insert [\w ]+\}|\b\w+_place_?holder\b",
    re.MULTILINE,
)


def image_in_capitals(image: Any) -> bool:
    """True for a repository that Docker takes for none, since it has capitals; a host before it may have some.

    What stands before the first slash is a host if it has a dot or a colon, or is localhost.
    """
    if not isinstance(image, str) or ":/" in image:
        return False
    first, slash, rest = image.partition("/")
    host = bool(slash) and ("." in first or ":" in first or first.lower() == "localhost")
    repository = re.split("[:@]", rest if host else image, maxsplit=1)[0]
    return re.search("[A-Z]", repository) is not None


def placeholder_in(bundle: Inspected, file: str) -> str:
    """First placeholder in a file that this program did not write; empty if there is none."""
    found = _PLACEHOLDER.search(bundle.text(file) or "") if bundle.loose is not None else None
    return found[0] if found else ""


def placeholders(bundle: Inspected) -> Iterator[Problem]:
    """Find files that are templates: nothing else can be said of them before they are filled in."""
    for file in bundle.yamls:
        if found := placeholder_in(bundle, file):
            message = f"The file holds a placeholder, {found}; it is judged once that is filled in."
            yield Problem(message, "Check the file that your script makes of it.", file)


def unversioned(bundle: Inspected) -> Iterator[Problem]:
    for key in ("model", "environment"):
        named = bundle.get(DEPLOYMENT, key)
        if isinstance(named, str) and _UNVERSIONED.fullmatch(named):
            message = f"{key} names no version: {named}."
            bare = re.sub(r"(/versions)?/?$|:$", "", named)
            whole = f"{bare}/versions/N" if "/" in bare else f"{bare}:VERSION, or {bare}@latest"
            yield Problem(message, f"Write {whole}.", DEPLOYMENT, (key,))
        elif isinstance(named, str) and (found := _KIND.fullmatch(named)) and found[1].lower() != f"{key}s":
            yield Problem(f"{key} names one of {found[1]}: {named}.", f"Name one of {key}s.", DEPLOYMENT, (key,))


def left_to_flags(bundle: Inspected) -> Iterator[Problem]:
    """Tell what a file leaves to the flags of `az ml`; a batch pipeline's steps may each name a cluster."""
    if bundle.loose is None or not bundle.readable(DEPLOYMENT):
        return
    needed = {"name": "--name", "endpoint_name": "--endpoint-name"}
    if bundle.kind == "batch" and bundle.get(DEPLOYMENT, "type") != "pipeline":
        needed["compute"] = "--set compute=azureml:NAME"
    for key, flag in needed.items():
        if not bundle.get(DEPLOYMENT, key):
            message = f"The file has no {key}, so it deploys with {flag} only."
            yield Problem(message, f"Write {key}, or give the flag.", DEPLOYMENT, (key,))


def no_environment(bundle: Inspected) -> Iterator[Problem]:
    """Require an environment for a script; only MLflow models, which need no script, have one of their own."""
    given = bundle.get(DEPLOYMENT, "environment")
    model_type = bundle.get(DEPLOYMENT, "model", "type") or bundle.get(MODEL, "type")
    script = bundle.get(DEPLOYMENT, "code_configuration") and model_type != "mlflow_model"
    templated = bundle.section(MODEL, "default_deployment_template")
    if bundle.readable(DEPLOYMENT) and given is None and not templated and (script or model_type == "custom_model"):
        message = "The deployment names no environment, and only an MLflow model brings one."
        yield Problem(message, "Write environment: azureml:NAME:VERSION.", DEPLOYMENT, ("environment",))


def built_and_named(bundle: Inspected) -> Iterator[Problem]:
    """Find both in an environment inside a deployment; of a file of its own azure-ai-ml itself says so."""
    inline = bundle.section(DEPLOYMENT, "environment")
    if inline.get("build") and inline.get("image"):
        message = "The environment has both an image and a build; Azure takes one of them."
        yield Problem(message, "Leave out one of them.", DEPLOYMENT, ("environment", "image"))
    for file, keys in _environments(bundle):
        image = bundle.get(file, *keys, "image")
        place = (*keys, "image")
        if image is not None and not image:
            message = "The environment's image has no name."
            yield Problem(message, "Write an image, or leave the key out and build one.", file, place)
        elif image is not None and image_in_capitals(image):
            message = f"{image} is no name of an image: names of images have no capitals."
            yield Problem(message, f"Write {image.lower()}, if that is meant.", file, place)


def routes(bundle: Inspected) -> Iterator[Problem]:
    for file, keys in _environments(bundle):
        for route, given in bundle.section(file, *keys, "inference_config").items():
            path, port = (given.get(key) if isinstance(given, dict) else None for key in ("path", "port"))
            place = (*keys, "inference_config", str(route))
            if isinstance(path, str) and not path.startswith("/"):
                yield Problem(f"{route} has the path {path!r}.", "Begin it with a slash.", file, place)
            elif isinstance(port, int) and not 1 <= port <= 65535:
                yield Problem(f"{route} has the port {port}.", "Write the server's port, 1 to 65535.", file, place)


def _environments(bundle: Inspected) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Places of environments: one inside a deployment, and a file of its own."""
    yield DEPLOYMENT, ("environment",)
    yield ENVIRONMENT, ()


def shares_of_no_slot(bundle: Inspected) -> Iterator[Problem]:
    """Find traffic to deployments that this folder does not hold, where it holds the endpoint's deployments."""
    for key in ("traffic", "mirror_traffic"):
        for slot, share in bundle.section(ENDPOINT, key).items():
            if share and bundle.slots and str(slot).lower() not in bundle.slots:
                message = f"{key} goes to {slot!r}, and the deployments here are {', '.join(sorted(bundle.slots))}."
                yield Problem(message, "Name one of them; an endpoint is made without traffic.", ENDPOINT, (key,))
    live = {str(slot).lower() for slot, share in bundle.section(ENDPOINT, "traffic").items() if share}
    for slot, share in bundle.section(ENDPOINT, "mirror_traffic").items():
        if share and str(slot).lower() in live:
            message = f"Traffic is mirrored to {slot!r}, which takes traffic itself."
            yield Problem(message, "Mirror to a deployment that takes none.", ENDPOINT, ("mirror_traffic", str(slot)))


def script_outside(bundle: Inspected) -> Iterator[Problem]:
    keys = ("code_configuration", "scoring_script")
    script, code = bundle.get(DEPLOYMENT, *keys), bundle.get(DEPLOYMENT, "code_configuration", "code")
    if not isinstance(script, str) or not isinstance(code, str) or bundle.loose is None:
        return
    parts, depth = PurePosixPath(script.replace("\\", "/")).parts, 0
    for part in parts:
        depth += -1 if part == ".." else 0 if part == "." else 1
        if depth < 0:
            break
    if depth < 0 or PurePosixPath(script).is_absolute() or PureWindowsPath(script).is_absolute():
        message = f"The script {script!r} lies outside {code!r}, the only folder that is uploaded."
        yield Problem(message, "Put it into that folder, and name it relative to it.", DEPLOYMENT, keys)


def variables(bundle: Inspected) -> Iterator[Problem]:
    file = bundle.runtime
    for name in bundle.section(file, "environment_variables"):
        place = ("environment_variables", str(name))
        if name in _OF_AZURE:
            message = f"{name} is Azure ML's own: it tells the container where the model is."
            yield Problem(message, "Leave it out; model_mount_path says where models are mounted.", file, place)
        elif not VARIABLE.fullmatch(str(name)):
            message = f"{str(name)!r} is no name of an environment variable."
            yield Problem(message, "Letters, digits, underscores, hyphens and dots, no digit first.", file, place)


def mount_path(bundle: Inspected) -> Iterator[Problem]:
    key = "model_mount_path"
    given = bundle.get(bundle.runtime, key)
    if isinstance(given, str) and (not given.startswith("/") or set(normpath(given)) == {"/"}):
        message = f"model_mount_path is {given!r}; the model cannot be mounted there."
        yield Problem(message, "Name a folder below the root, e.g. /var/models.", bundle.runtime, (key,))


def tags(bundle: Inspected) -> Iterator[Problem]:
    for file in bundle.yamls:
        given = bundle.section(file, "tags")
        if len(given) > MAX_TAGS:
            yield Problem(f"There are {len(given)} tags.", f"Azure takes {MAX_TAGS}.", file, ("tags",))
        for name, value in given.items():
            if reason := _bad_tag(name, value, file in (ENDPOINT, DEPLOYMENT)):
                message, remedy = f"The tag {str(name)[:40]!r} {reason}.", _tag_remedy(reason)
                plain = bundle.loose is not None and isinstance(value, int | float)  # which ARM reads as text
                yield Problem(message, remedy, file, ("tags",), doubtful=plain)
                break


def _tag_remedy(reason: str) -> str:
    return (
        "Put it in quotes."
        if "no text" in reason
        else "Name it otherwise."
        if " in its name" in reason
        else "Shorten it."
    )


def _bad_tag(name: Any, value: Any, of_resource: bool) -> str:
    if not isinstance(name, str) or not isinstance(value, str | None):
        return f"has a value that is no text: {value!r}"
    if of_resource and (wrong := _NOT_IN_TAGS & set(name)):
        return f"has {' '.join(sorted(wrong))} in its name, which Azure does not take"
    if len(name) > TAG_NAME_LENGTH:
        return f"has a name of {len(name)} characters; Azure takes {TAG_NAME_LENGTH}"
    if value and len(value) > TAG_VALUE_LENGTH:
        return f"has a value of {len(value)} characters; Azure takes {TAG_VALUE_LENGTH}"
    return ""


def computes(bundle: Inspected) -> Iterator[Problem]:
    for file in (ENDPOINT, DEPLOYMENT):
        given = bundle.get(file, "compute")
        if isinstance(given, str) and not given.startswith(("/", "azureml:/")) and not _COMPUTE.fullmatch(given):
            remedy = "Letters, digits, hyphens and underscores, as in azureml:my-cluster."
            yield Problem(f"{given!r} is no name of a compute.", remedy, file, ("compute",))
    given = bundle.get(DEPLOYMENT, "instance_type") if bundle.kind == "kubernetes" else None
    if isinstance(given, str) and not _OF_CLUSTER.fullmatch(given):
        message = f"{given!r} is no name that a cluster's instance type can have."
        remedy = "Write one that `kubectl get instancetypes` lists, or leave it out for the cluster's default."
        yield Problem(message, remedy, DEPLOYMENT, ("instance_type",))


def on_kubernetes(bundle: Inspected) -> Iterator[Problem]:
    if bundle.kind != "kubernetes":
        return
    if str(bundle.get(ENDPOINT, "auth_mode")).lower() == "aad_token":
        message = "Endpoints on Kubernetes take keys and aml_token, not aad_token."
        yield Problem(message, "Write auth_mode: key, or aml_token.", ENDPOINT, ("auth_mode",))
    if any(bundle.section(ENDPOINT, "mirror_traffic").values()):
        message = "Endpoints on Kubernetes mirror no traffic."
        yield Problem(message, "Leave it out, or use a managed endpoint.", ENDPOINT, ("mirror_traffic",))
