"""Rules on deployment templates, and on the registry's model and the deployment that refer to one.

azure-ai-ml sends a template as it is. What Azure takes is told by Microsoft's reference-yaml-deployment-template.md,
concept-deployment-template.md and how-to-manage-models-deployment-templates.md (azure-ai-docs, 2026-05).
"""

import re
from collections.abc import Iterator
from typing import Any

from mii_azure.bundle.bundle_view import DEPLOYMENT, ENVIRONMENT, MODEL, TEMPLATE, Fix, Inspected, Problem
from mii_azure.bundle.render import image_version, template_version
from mii_azure.checks.serving import PROBES
from mii_azure.errors import UnknownInstanceType
from mii_azure.hardware.skus import find_sku

_ENVIRONMENT = re.compile(r"azureml://registries/([^/]+)/environments/([^/]+)/versions/([^/]+)")
_DEFAULT = re.compile(r"azureml://registries/([^/]+)/deploymenttemplates/([^/]+)/versions/([^/]+)", re.IGNORECASE)
_ALLOWED = re.compile(r"azureml://registries/([^/]+)/deploymenttemplates/([^/]+)/labels/latest", re.IGNORECASE)
_MODEL = re.compile(r"azureml://registries/([^/]+)/models/([^/]+)/versions/([^/]+)")
_NEEDED = ("deployment_template_type", "environment", "default_instance_type", "instance_count", "scoring_path")
_ACCELERATOR = re.compile(r"[A-Z][A-Z0-9]*_\d+GB")
#: Keys of a deployment that its template brings, of which Azure may ignore the deployment's.
_BROUGHT = ("environment", "code_configuration", "model_mount_path", "request_settings", *PROBES)
_VERSION = re.compile(r'^version: "([0-9a-f]{12})"$', re.MULTILINE)


def kind_of_template(bundle: Inspected) -> Iterator[Problem]:
    given = bundle.get(TEMPLATE, "deployment_template_type")
    if given is not None and given != "Managed":
        message = f"deployment_template_type is {given!r}; Azure has templates of managed endpoints only."
        yield Problem(message, "Write Managed.", TEMPLATE, ("deployment_template_type",))


def needed(bundle: Inspected) -> Iterator[Problem]:
    for key in (*_NEEDED, "scoring_port", "version") if bundle.readable(TEMPLATE) else ():
        if bundle.get(TEMPLATE, key) in (None, ""):
            yield Problem(f"The template has no {key}, which Azure requires.", f"Write {key}.", TEMPLATE, (key,))


def environment(bundle: Inspected) -> Iterator[Problem]:
    given = bundle.get(TEMPLATE, "environment")
    if given is not None and not (isinstance(given, str) and _ENVIRONMENT.fullmatch(given)):
        shown = "an environment of its own" if isinstance(given, dict) else repr(given)
        message = f"The template's environment is {shown}; Azure takes a version in a registry only."
        remedy = "Share it to the registry, and write azureml://registries/REGISTRY/environments/NAME/versions/VERSION."
        yield Problem(message, remedy, TEMPLATE, ("environment",))


def instance_types(bundle: Inspected) -> Iterator[Problem]:
    """Find allowed instance types that do not exist, and a default or a deployment's that is not allowed."""
    place = ("allowed_instance_types",)
    allowed = bundle.get(TEMPLATE, *place)
    if not isinstance(allowed, list) or not all(isinstance(each, str) for each in allowed):
        return
    for each in allowed:
        try:
            retired = find_sku(each).retired
        except UnknownInstanceType as error:
            yield Problem(error.message, error.hint, TEMPLATE, place, doubtful=True)
            return
        if retired:
            yield Problem(f"Azure retired {each} on {retired}.", "Leave it out.", TEMPLATE, place)
            return
    known = {each.lower() for each in allowed}
    for file, keys in ((TEMPLATE, ("default_instance_type",)), (DEPLOYMENT, ("instance_type",))):
        named = bundle.get(file, *keys)
        if known and isinstance(named, str) and named.lower() not in known:
            message = f"{named} is none of the template's allowed_instance_types, and Azure refuses it."
            yield Problem(message, f"Write one of {', '.join(allowed)}.", file, keys)


def scoring_route(bundle: Inspected) -> Iterator[Problem]:
    path, port = bundle.get(TEMPLATE, "scoring_path"), bundle.get(TEMPLATE, "scoring_port")
    if isinstance(path, str) and not path.startswith("/"):
        yield Problem(f"scoring_path is {path!r}.", "Begin it with a slash.", TEMPLATE, ("scoring_path",))
    if isinstance(port, int) and not 1 <= port <= 65535:
        yield Problem(f"scoring_port is {port}.", "Write the server's port, 1 to 65535.", TEMPLATE, ("scoring_port",))
    wanted = {
        "scoring_path": bundle.get(ENVIRONMENT, "inference_config", "scoring_route", "path"),
        "scoring_port": bundle.get(ENVIRONMENT, "inference_config", "scoring_route", "port"),
    }
    for key, value in wanted.items():
        given = bundle.get(TEMPLATE, key)
        if value is not None and given is not None and given != value:
            message = f"{key} is {given!r}, and environment.yml has {value!r}."
            yield Problem(message, f"Write {value}.", TEMPLATE, (key,), fixes=(Fix(TEMPLATE, (key,), value),))


def probe_targets(bundle: Inspected) -> Iterator[Problem]:
    for probe in PROBES:
        given = bundle.section(TEMPLATE, probe)
        port, scoring = given.get("port"), bundle.get(ENVIRONMENT, "inference_config", "scoring_route", "port")
        if reason := _bad_target(given):
            key, message, remedy = reason
            yield Problem(f"{probe}.{key} {message}.", remedy, TEMPLATE, (probe, key))
        elif isinstance(port, int) and isinstance(scoring, int) and port != scoring and bundle.loose is None:
            message = f"{probe} asks port {port}, and the container answers on {scoring}."
            yield Problem(message, f"Write {scoring}.", TEMPLATE, (probe, "port"))


def _bad_target(probe: Any) -> tuple[str, str, str] | None:
    """Key of a probe with no valid way of asking, what is wrong with it, and the remedy."""
    scheme, method, path, port = (probe.get(key) for key in ("scheme", "method", "path", "port"))
    if scheme is not None and str(scheme).upper() not in ("HTTP", "HTTPS"):
        return "scheme", f"is {scheme!r}", "Write HTTP or HTTPS."
    if method is not None and str(method).upper() not in ("GET", "POST", "HEAD"):
        return "method", f"is {method!r}", "Write GET."
    if isinstance(path, str) and not path.startswith("/"):
        return "path", f"is {path!r}", "Begin it with a slash."
    if isinstance(port, int) and not 1 <= port <= 65535:
        return "port", f"is {port}", "Write the server's port, 1 to 65535."
    return None


def accelerators(bundle: Inspected) -> Iterator[Problem]:
    place = ("accelerator_maps",)
    given = bundle.get(TEMPLATE, *place)
    maps = [each for each in given if isinstance(each, dict)] if isinstance(given, list) else []
    for each in maps:
        kind, count = each.get("accelerator_type"), each.get("number_of_accelerators_per_model_instance")
        if isinstance(kind, str) and not _ACCELERATOR.fullmatch(kind):
            yield Problem(f"{kind!r} is no type of accelerator.", "Write it as in A100_80GB.", TEMPLATE, place)
            return
        if type(count) is int and count < 1:
            message = f"{kind} is used {count} times by a copy of the model."
            yield Problem(message, "Give 1 or more.", TEMPLATE, place)
            return
    kinds = [each["accelerator_type"] for each in maps if isinstance(each.get("accelerator_type"), str)]
    if len(set(kinds)) < len(kinds):
        yield Problem("accelerator_maps names a type twice.", "Name each once.", TEMPLATE, place)
    elif sum(each.get("default") is True for each in maps) > 1:
        yield Problem("accelerator_maps has two defaults.", "Have one of them the default.", TEMPLATE, place)


def default_of_model(bundle: Inspected) -> Iterator[Problem]:
    keys = ("default_deployment_template", "asset_id")
    given = bundle.get(MODEL, *keys)
    if bundle.section(MODEL, keys[0]) and not (isinstance(given, str) and _DEFAULT.fullmatch(given)):
        message = f"The model's default template is {given!r}; Azure takes a version of one in a registry."
        remedy = "Write azureml://registries/REGISTRY/deploymenttemplates/NAME/versions/VERSION."
        yield Problem(message, remedy, MODEL, keys)


def allowed_of_model(bundle: Inspected) -> Iterator[Problem]:
    keys = ("allowed_deployment_templates",)
    given = bundle.get(MODEL, *keys)
    for each in given if isinstance(given, list) else []:
        named = each.get("asset_id") if isinstance(each, dict) else each
        if not (isinstance(named, str) and _ALLOWED.fullmatch(named)):
            message = f"An allowed template is {named!r}; Azure takes those by their label."
            remedy = "Write azureml://registries/REGISTRY/deploymenttemplates/NAME/labels/latest."
            yield Problem(message, remedy, MODEL, keys)
            return


def assets_that_disagree(bundle: Inspected) -> Iterator[Problem]:
    """Require that template, model and deployment name what this folder registers, in one registry."""
    if not bundle.readable(TEMPLATE) or bundle.loose is not None:
        return
    default = ("default_deployment_template", "asset_id")
    references = (
        (TEMPLATE, ("environment",), _ENVIRONMENT, ENVIRONMENT),
        (MODEL, default, _DEFAULT, TEMPLATE),
        (DEPLOYMENT, ("model",), _MODEL, MODEL),
    )
    registry = ""
    for file, keys, form, registered in references:
        named = bundle.get(file, *keys)
        found = form.fullmatch(named) if isinstance(named, str) else None
        wanted = tuple(str(bundle.get(registered, key)) for key in ("name", "version"))
        if named is not None and (found is None or found.groups()[1:] != wanted) and (found or file == DEPLOYMENT):
            message = f"{'.'.join(keys)} is {named!r}; {registered} registers {wanted[0]}, version {wanted[1]}."
            yield Problem(message, "Name that.", file, keys)
        elif found and registry not in ("", found[1]):
            message = f"{'.'.join(keys)} is in the registry {found[1]!r}, and the environment in {registry!r}."
            yield Problem(message, "Publish all of it in one registry.", file, keys)
        registry = registry or (found[1] if found else "")


def stale(bundle: Inspected) -> Iterator[Problem]:
    """Find versions of a template and its image that are those of other content: neither is changed once it exists."""
    text = bundle.text(TEMPLATE)
    if text is None or bundle.loose is not None or not bundle.readable(TEMPLATE):
        return
    given, wanted = bundle.get(TEMPLATE, "version"), template_version(_VERSION.sub('version: ""', text, count=1))
    if given != wanted:
        message = f"The version {given!r} is not that of the template's content, {wanted}."
        yield Problem(message, "Generate the bundle again.", TEMPLATE, ("version",))
    hashes = bundle.manifest["files"].items()
    built = {path: digest for path, digest in hashes if path.startswith(("environment/", "code/"))}
    wanted, image = image_version(built), bundle.get(ENVIRONMENT, "image")
    for key, value in (("version", bundle.get(ENVIRONMENT, "version")), ("image", str(image).rpartition(":")[2])):
        if bundle.readable(ENVIRONMENT) and value != wanted:
            message = f"{key} says {value!r}; the image is built of environment/ and code/, which are {wanted}."
            yield Problem(message, "Generate the bundle again.", ENVIRONMENT, (key,))
            return


def ignored(bundle: Inspected) -> Iterator[Problem]:
    """Tell of settings of a deployment that its model's template brings."""
    if not (bundle.readable(TEMPLATE, DEPLOYMENT) and bundle.loose is None):
        return
    for key in _BROUGHT:
        if bundle.get(DEPLOYMENT, key) is not None:
            message = f"The model's deployment template brings {key}, and Azure may ignore the deployment's."
            yield Problem(message, "Leave it out here, and say it in the template.", DEPLOYMENT, (key,))
