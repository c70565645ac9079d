"""Rules on the YAML: values that azure-ai-ml accepts and the service refuses, drops or never uses."""

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from mii_azure.bundle.bundle_view import DEPLOYMENT, ENDPOINT, ENVIRONMENT, MODEL, Fix, Inspected, Problem
from mii_azure.bundle.render import content_hash, reference_version
from mii_azure.model.source import names_files
from mii_azure.platform.servers import PORT
from mii_azure.platform.servers import routes as routes_of
from mii_azure.spec import NAME_LENGTH, NAME_PATTERN

# Keys that hold a path in each file, and the folder it is relative to: the bundle, or another key's folder.
PATHS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    (DEPLOYMENT, ("code_configuration", "code"), ()),
    (DEPLOYMENT, ("code_configuration", "scoring_script"), ("code_configuration", "code")),
    (DEPLOYMENT, ("environment", "build", "path"), ()),
    (DEPLOYMENT, ("environment", "build", "dockerfile_path"), ("environment", "build", "path")),
    (ENVIRONMENT, ("build", "path"), ()),
    (ENVIRONMENT, ("build", "dockerfile_path"), ("build", "path")),
    (MODEL, ("path",), ()),
)
_CONTENT_HASH = re.compile(r"[0-9a-f]{12}")
_ELSEWHERE = re.compile(r"^(azureml:|https?://|runs:/|git\+)")
_ASSET_FOLDERS = {ENVIRONMENT: "environment/", MODEL: "model/"}


def malformed(bundle: Inspected) -> Iterator[Problem]:
    for file in bundle.yamls:
        reason = bundle.malformed(file)
        if reason:
            yield Problem(
                f"The YAML cannot be read: {reason[0]}.",
                "Correct it." if bundle.loose is not None else "Correct it, or generate the bundle again.",
                file,
                line=reason[1],
            )


def repeated_keys(bundle: Inspected) -> Iterator[Problem]:
    """Find keys that a mapping has twice: azure-ai-ml takes the last one, and says nothing of the others."""
    for file in bundle.yamls:
        for key, line in bundle.repeated(file):
            yield Problem(f"{key} stands twice in one mapping; only the last counts.", "Remove one.", file, line=line)


def names(bundle: Inspected) -> Iterator[Problem]:
    """Judge the names of endpoint and deployment, and the endpoint's in the deployment by the same rule."""
    for file, key in ((ENDPOINT, "name"), (DEPLOYMENT, "name"), (DEPLOYMENT, "endpoint_name")):
        if not bundle.readable(file):
            continue
        name = bundle.get(file, key)
        if key != "name" and (not name or name == bundle.get(ENDPOINT, "name")):
            continue  # another rule's, or judged in the endpoint's file
        if name is None and bundle.loose is not None:
            continue  # given by a flag
        if not isinstance(name, str):
            yield Problem(f"The {key} must be text, not {name!r}.", "Azure takes 3 to 32 characters.", file, (key,))
            continue
        low, high = NAME_LENGTH
        if not low <= len(name) <= high or not NAME_PATTERN.fullmatch(name):
            yield Problem(
                f"Azure refuses the name {name!r}.",
                f"{low} to {high} letters, digits and hyphens, a letter first, no hyphen last.",
                file,
                (key,),
            )


def deployment_name_in_capitals(bundle: Inspected) -> Iterator[Problem]:
    name = bundle.get(DEPLOYMENT, "name")
    if isinstance(name, str) and name != name.lower():
        yield Problem(
            f"Azure turns the deployment name {name!r} into {name.lower()!r}.",
            "Write it in lower case.",
            DEPLOYMENT,
            ("name",),
            fixes=(Fix(DEPLOYMENT, ("name",), name.lower()),),
        )


def another_endpoint(bundle: Inspected) -> Iterator[Problem]:
    wanted, named = bundle.get(ENDPOINT, "name"), bundle.get(DEPLOYMENT, "endpoint_name")
    place = ("endpoint_name",)
    if bundle.readable(DEPLOYMENT) and not named and bundle.loose is None:
        fixes = (Fix(DEPLOYMENT, place, wanted),) if isinstance(wanted, str) and wanted else ()
        yield Problem("endpoint_name is empty.", "Name the endpoint.", DEPLOYMENT, place, fixes=fixes)
    elif bundle.readable(ENDPOINT, DEPLOYMENT) and wanted != named:
        yield Problem(
            f"The deployment is for the endpoint {named!r}; endpoint.yml creates {wanted!r}.",
            "Give both the same name.",
            DEPLOYMENT,
            ("endpoint_name",),
        )


def references(bundle: Inspected) -> Iterator[Problem]:
    """Require that the deployment uses the environment and the model that this folder registers."""
    if bundle.runtime != DEPLOYMENT:
        return  # a template's references are judged with it
    for key, file in (("environment", ENVIRONMENT), ("model", MODEL)):
        if not bundle.readable(DEPLOYMENT, file):
            continue
        wanted = f"azureml:{bundle.get(file, 'name')}:{bundle.get(file, 'version')}"
        named = bundle.get(DEPLOYMENT, key)
        if named != wanted:
            yield Problem(
                f"The deployment uses {named!r}; {file} registers {wanted!r}.",
                f"Write {wanted}.",
                DEPLOYMENT,
                (key,),
            )


def model_by_its_files(bundle: Inspected) -> Iterator[Problem]:
    """Find a model given by its files: azure-ai-ml loads it, but deploys only a model by name and version."""
    named = bundle.get(DEPLOYMENT, "model")
    if isinstance(named, str) and names_files(named):
        message = f"{named} is a place of files; a deployment names a registered model."
        yield Problem(message, "Register it with that path, and write azureml:NAME:VERSION.", DEPLOYMENT, ("model",))


def stale_versions(bundle: Inspected) -> Iterator[Problem]:
    """Find stale versions: deploy.sh registers a version once, so changed content under it is never uploaded."""
    for file, folder in _ASSET_FOLDERS.items():
        if not bundle.readable(file) or (file == ENVIRONMENT and bundle.runtime != DEPLOYMENT):
            continue  # a template's image carries more than environment/, and is judged with it
        hashes: dict[str, str] = bundle.manifest["files"]
        wanted = content_hash({path: digest for path, digest in hashes.items() if path.startswith(folder)})
        if file == MODEL and (of_reference := reference_version(str(bundle.get(MODEL, "path")))):
            folder, wanted = "the path", of_reference
        if bundle.get(file, "version") != wanted:
            yield Problem(
                f"The version {bundle.get(file, 'version')!r} is not that of the content of {folder}, {wanted}.",
                f'Write version: "{wanted}" here, in deployment.yml and in deploy.sh, or generate the bundle again.',
                file,
                ("version",),
                fixes=_version_fixes(bundle.get(file, "version"), wanted, file),
            )


def _version_fixes(old: Any, new: str, file: str) -> tuple[Fix, ...]:
    """Replacement of an old content hash by the new one everywhere; none if the version is no such hash."""
    if not isinstance(old, str) or not _CONTENT_HASH.fullmatch(old):
        return ()
    return tuple(Fix(changed, (), new, old) for changed in (file, DEPLOYMENT, "deploy.sh"))


def variables_that_are_not_strings(bundle: Inspected) -> Iterator[Problem]:
    for name, value in bundle.section(bundle.runtime, "environment_variables").items():
        if not isinstance(value, str):
            yield Problem(
                f"The environment variable {name} is {value!r}, not a string; azure-ai-ml sends it as it is.",
                "Put it in quotes.",
                bundle.runtime,
                ("environment_variables", str(name)),
                fixes=_quoted(bundle.runtime, str(name), value),
                doubtful=bundle.loose is not None and isinstance(value, int | float),  # ARM reads these as text
            )


def _quoted(file: str, name: str, value: Any) -> tuple[Fix, ...]:
    """String for the value, if it is beyond doubt: a whole number or a boolean."""
    if not isinstance(value, int):
        return ()
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return (Fix(file, ("environment_variables", name), text),)


def paths(bundle: Inspected) -> Iterator[Problem]:
    bad: set[tuple[str, ...]] = set()
    for file, keys, base in PATHS:
        if not bundle.readable(file) or base in bad:
            continue
        value = bundle.get(file, *keys)
        inline = file == DEPLOYMENT and keys[0] == "environment"  # most name one instead
        sparse = bundle.loose is not None or bundle.runtime != DEPLOYMENT or inline
        if sparse and value is None and not (bundle.section(file, *keys[:-1]) and base):
            continue  # a custom container needs no code, and a model may be a reference
        if value is None and keys[-1] == "dockerfile_path" and bundle.loose is not None:
            value = "Dockerfile"  # which the client and Azure take, where no other is named
        folder = str(bundle.get(file, *base)) if base else "."
        root = bundle.path(file).parent
        bundled = bundle.loose is None
        reason = _bad_path(root, folder, value, bundled) if isinstance(value, str) else f"is {value!r}, not a path"
        if reason:
            bad.add(keys)
            message = f"{'.'.join(keys)} {reason}."
            remedy = "inside the bundle, relative to it." if bundled else "that is there, relative to this file."
            yield Problem(message, f"Name something {remedy}", file, keys)


def _bad_path(root: Path, folder: str, value: str, bundled: bool) -> str:
    if _ELSEWHERE.match(value) or _ELSEWHERE.match(folder):
        return ""
    if PurePosixPath(value).is_absolute() or PureWindowsPath(value).is_absolute():
        return "is an absolute path, which exists on one machine only"
    target = (root / folder / value).resolve()
    if bundled and not target.is_relative_to(root.resolve()):
        return "is a path out of the bundle"
    return "" if target.exists() else f"is {value!r}, which does not exist"


def routes(bundle: Inspected) -> Iterator[Problem]:
    if not bundle.readable(ENVIRONMENT):
        return
    for route, path in routes_of(bundle.server_kind)._asdict().items():
        given = bundle.get(ENVIRONMENT, "inference_config", route)
        if given != {"port": PORT, "path": path}:
            yield Problem(
                f"inference_config.{route} is {given!r}; the server answers at {path} on port {PORT}.",
                f"Write port: {PORT} and path: {path}.",
                ENVIRONMENT,
                ("inference_config", route),
                fixes=tuple(
                    Fix(ENVIRONMENT, ("inference_config", route, key), value)
                    for key, value in (("port", PORT), ("path", path))
                ),
            )


def traffic(bundle: Inspected) -> Iterator[Problem]:
    shares = bundle.get(ENDPOINT, "traffic")
    if shares is not None and not _shares(shares, {0, 100}):
        yield Problem(
            f"Traffic adds up to neither 0 nor 100: {shares!r}.",
            "Whole percentages, 100 in all.",
            ENDPOINT,
            ("traffic",),
        )
    mirrored = bundle.get(ENDPOINT, "mirror_traffic")
    if mirrored is not None and not (_shares(mirrored, set(range(51))) and len(mirrored) <= 1):
        yield Problem(
            f"Mirrored traffic must be at most 50 % to one deployment: {mirrored!r}.",
            "Mirror to one deployment, with 0 to 50.",
            ENDPOINT,
            ("mirror_traffic",),
        )


def _shares(value: Any, sums: set[int]) -> bool:
    if not isinstance(value, dict) or not all(type(share) is int and 0 <= share <= 100 for share in value.values()):
        return False
    return sum(value.values()) in sums
