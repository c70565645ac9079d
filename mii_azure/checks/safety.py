"""Rules on identity, secrets and other values that azure-ai-ml does not check: asset names, references, images."""

import re
from collections.abc import Iterator

from mii_azure.bundle.bundle_view import (
    DEPLOYMENT,
    DOCKERFILE,
    ENDPOINT,
    ENVIRONMENT,
    MODEL,
    TEMPLATE,
    Inspected,
    Problem,
)
from mii_azure.bundle.render import images
from mii_azure.platform.secret_references import CONNECTION_ROLE, FORMS, is_reference, names_a_secret, uses_connection

ASSET_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9\-_]{0,254}")
_IDENTITY = re.compile(
    r"/subscriptions/[^/]+/resourcegroups/[^/]+/providers/Microsoft\.ManagedIdentity/userAssignedIdentities/[^/]+",
    re.IGNORECASE,
)
_FLAG = ("properties", "enforce_access_to_default_secret_stores")
_COMPAT = re.compile(r"/compat(:|$|\")")
_BY_REFERENCE = f"Store it in a workspace connection or a key vault, and write {FORMS}."


def literal_secrets(bundle: Inspected) -> Iterator[Problem]:
    for name, value in bundle.section(bundle.runtime, "environment_variables").items():
        if names_a_secret(str(name)) and isinstance(value, str) and value and not is_reference(value):
            message = f"The environment variable {name} holds a secret as it is; everybody who reads the file has it."
            yield Problem(message, _BY_REFERENCE, bundle.runtime, ("environment_variables", str(name)))


def unreadable_connections(bundle: Inspected) -> Iterator[Problem]:
    """Require that the endpoint lets a system-assigned identity read connections; a user-assigned one may not ask."""
    if not bundle.readable(ENDPOINT):
        return
    values = bundle.section(DEPLOYMENT, "environment_variables").values()
    asks = bundle.get(ENDPOINT, *_FLAG) is not None
    user_assigned = bundle.get(ENDPOINT, "identity", "type") == "user_assigned"
    if user_assigned and asks:
        remedy = f"Leave it out, and give the identity the role {CONNECTION_ROLE}."
        yield Problem(f"{_FLAG[1]} is not allowed with a user-assigned identity.", remedy, ENDPOINT, _FLAG)
    elif not user_assigned and not asks and any(uses_connection(str(value)) for value in values):
        yield Problem(
            "The deployment takes secrets from workspace connections, which the endpoint's identity may not read.",
            f"Write {'.'.join(_FLAG)}: enabled.",
            ENDPOINT,
            _FLAG,
        )


def identity(bundle: Inspected) -> Iterator[Problem]:
    place, kind = ("identity", "user_assigned_identities"), bundle.get(ENDPOINT, "identity", "type")
    given = bundle.get(ENDPOINT, *place)
    if kind == "system_assigned" and given:
        message = "The identity is the system's own, and ids of others are named beside it."
        yield Problem(message, "Write type: user_assigned, or leave the ids out.", ENDPOINT, place)
    if kind != "user_assigned":
        return
    items = given if isinstance(given, list) else [given] if given else []
    ids = [str(item.get("resource_id") if isinstance(item, dict) else item) for item in items]
    if not ids or not all(_IDENTITY.fullmatch(resource) for resource in ids):
        yield Problem(
            "A user-assigned identity needs its resource id: " + (f"not {ids[0]!r}." if ids else "none is named."),
            "Write /subscriptions/ID/resourceGroups/GROUP/providers/Microsoft.ManagedIdentity"
            "/userAssignedIdentities/NAME.",
            ENDPOINT,
            place,
        )


def asset_names(bundle: Inspected) -> Iterator[Problem]:
    for file in (ENVIRONMENT, MODEL, TEMPLATE):
        name = bundle.get(file, "name")
        if bundle.readable(file) and not (isinstance(name, str) and ASSET_NAME.fullmatch(name)):
            remedy = "A letter or digit, then up to 254 letters, digits, hyphens and underscores."
            yield Problem(f"Azure refuses the asset name {name!r}.", remedy, file, ("name",))


def registry_labels(bundle: Inspected) -> Iterator[Problem]:
    for key in ("model", "environment"):
        named = bundle.get(DEPLOYMENT, key)
        if isinstance(named, str) and named.startswith("azureml://registries/") and "/labels/" in named:
            message = f"{key} names a label of a registry, which azure-ai-ml passes on without knowing that form."
            yield Problem(message, "Name a version: .../versions/N.", DEPLOYMENT, (key,))


def tied_to_a_workspace(bundle: Inspected) -> Iterator[Problem]:
    for key in ("model", "environment", "compute"):
        named = bundle.get(DEPLOYMENT, key)
        if isinstance(named, str) and re.search(r"/subscriptions/[^/]+/resourcegroups/", named, re.IGNORECASE):
            message = f"{key} names one subscription and resource group; the file deploys nowhere else."
            yield Problem(message, "Write azureml:NAME:VERSION, or a registry's reference.", DEPLOYMENT, (key,))


def traffic_in_capitals(bundle: Inspected) -> Iterator[Problem]:
    for key in ("traffic", "mirror_traffic"):
        wrong = [str(name) for name in bundle.section(ENDPOINT, key) if str(name) != str(name).lower()]
        if wrong:
            message = f"{key} names {wrong[0]!r}; Azure turns deployment names into lower case, so there is none."
            yield Problem(message, f"Write {wrong[0].lower()}.", ENDPOINT, (key, wrong[0]))


def conda_without_image(bundle: Inspected) -> Iterator[Problem]:
    inline = bundle.section(DEPLOYMENT, "environment")
    if inline.get("conda_file") and not inline.get("image"):
        message = "The environment has a conda file and no image to install it into."
        yield Problem(message, "Name an image too, or a Dockerfile under build.", DEPLOYMENT, ("environment",))


def conda(bundle: Inspected) -> Iterator[Problem]:
    places = (
        (DEPLOYMENT, ("environment", "conda_file"), ("environment", "image")),
        (ENVIRONMENT, ("conda_file",), ("image",)),
    )
    for file, keys, image in places:
        if bundle.get(file, *keys) and bundle.get(file, *image):
            message = (
                "The image is solved by conda at every build, which is slow, and gives other packages another day."
            )
            yield Problem(message, "Build from a Dockerfile that installs a lock with hashes.", file, keys)


def floating_image(bundle: Inspected) -> Iterator[Problem]:
    """Find an image without a fixed tag or digest; the generator's own base images are known."""
    known = {image["image"] for image in images().values()}
    for file, keys, image in _images(bundle):
        if image not in known and _floats(image):
            yield Problem(f"The image {image} may be another one tomorrow.", "Name a tag or a digest.", file, keys)


def image_without_patches(bundle: Inspected) -> Iterator[Problem]:
    """Remark on an image that a digest pins, which its publisher patches no more."""
    for file, keys, image in _images(bundle):
        if "@sha256:" in image:
            yield Problem(
                f"The image {image.partition('@')[0]} is pinned by its digest, so that it gets no patches.",
                "Give a newer digest from time to time, and deploy again.",
                file,
                keys,
            )


def _images(bundle: Inspected) -> Iterator[tuple[str, tuple[str, ...], str]]:
    """Images of YAML, and those that the Dockerfile builds on, each with its place."""
    for file, keys in ((DEPLOYMENT, ("environment", "image")), (ENVIRONMENT, ("image",))):
        if isinstance(image := bundle.get(file, *keys), str):
            yield file, keys, image
    text = bundle.text(DOCKERFILE) or ""
    stages = set(re.findall(r"^FROM +\S+ +AS +(\S+)", text, re.MULTILINE | re.IGNORECASE))
    for base in sorted(set(re.findall(r"^FROM +(\S+)", text, re.MULTILINE)) - stages):
        yield DOCKERFILE, (), base


def _floats(image: str) -> bool:
    last = image.rsplit("/", 1)[-1]
    return "@sha256:" not in image and (":" not in last or last.endswith(":latest")) and "/labels/" not in image


def newer_than_the_driver(bundle: Inspected) -> Iterator[Problem]:
    text = bundle.text(DOCKERFILE) or ""
    base = re.search(r"^FROM +\S*cuda(\d+)", text, re.MULTILINE)
    paths = re.findall(r"^ENV +LD_LIBRARY_PATH=(.*)$", text, re.MULTILINE)
    if base and int(base[1]) >= 13 and not any(_COMPAT.search(path.split(":")[0] + ":") for path in paths):
        yield Problem(
            f"The image has CUDA {base[1]}, and Azure's hosts run drivers that end at 12.",
            "Put /usr/local/cuda/compat first on LD_LIBRARY_PATH, from the package cuda-compat.",
            DOCKERFILE,
        )
