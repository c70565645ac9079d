"""Verb package: an OCI image layout of a bundle, written without a container engine.

Over the image of the bundle's environment/ (`base`) it is an image that runs; without one it is an image of the
bundle's files alone, which Kubernetes and container engines mount as a volume and `mii-azure serve` serves.
"""

import secrets
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from local_runner.bundle.manifest import MANIFEST
from mii_azure.bundle import oci_layout, own_image
from mii_azure.bundle.bundle_view import Inspected
from mii_azure.bundle.folders import refuse_existing
from mii_azure.bundle.manifest import find_mismatches, load_manifest, restoring
from mii_azure.bundle.stopping import unwinding
from mii_azure.errors import BundleEdited, NotWritten, SpecError
from mii_azure.platform.paths import expanded
from mii_azure.version import __version__

_VENV = "/opt/mii-azure/venv/bin"  # of the generated Dockerfile
_EPOCH = "1970-01-01T00:00:00Z"
_SCRIPTS = ("deploy.sh", "autoscale.sh")


class Packaged(BaseModel):
    """Result of `package`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layout: str  # folder of the OCI layout
    digest: str  # of the image's manifest
    tag: str
    bytes: int  # of its layers
    runs: bool  # whether it is an image that starts a server


def package(bundle: Path | str, output: Path | str, *, base: Path | str | None = None, tag: str = "") -> Packaged:
    """Write an OCI image layout of a bundle to the folder `output`, all or nothing; the same files give the same bytes.

    `base` is the layout of the image that the bundle's Dockerfile builds; `tag` is the bundle's hash if empty. Raises
    NotABundle, BundleEdited, BundleExists, SpecError and NotWritten.
    """
    root, target = expanded(bundle).resolve(), expanded(output).resolve()
    told = load_manifest(root)
    if changed := find_mismatches(root):
        raise BundleEdited(f"{changed[0].path} is {changed[0].kind}.", restoring(root, told, changed))
    refuse_existing(target, force=False)
    if target.is_relative_to(root):
        raise NotWritten(f"{target} is inside the bundle.", "Choose another --output.")
    image = _base(root, expanded(base)) if base else None
    tag = tag or str(told["bundle"])[:12]
    draft = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    try:
        with unwinding():
            draft.mkdir(parents=True)
            made = _write(root, sorted(told["files"]), draft, image, expanded(base) if base else None, tag)
            if target.exists():
                target.rmdir()  # an empty folder
            draft.rename(target)
    except OSError as error:
        raise NotWritten(
            f"{target} could not be written: {error.strerror or error}.", "Nothing was left behind."
        ) from None
    finally:
        oci_layout.discard(draft)
    return made.model_copy(update={"layout": str(target)})


def _base(root: Path, folder: Path) -> oci_layout.Image:
    """Image to build on; raises SpecError for one that no Dockerfile of a bundle built, or a bundle with no server."""
    if Inspected(root).kind == "batch":
        raise SpecError("A batch bundle has no server to start.", "Leave out --base.")
    image = oci_layout.read(folder)
    settings = image.config.get("config") or {}
    path = next((each for each in settings.get("Env") or [] if str(each).startswith("PATH=")), "")
    if _VENV not in path or not settings.get("Cmd"):
        raise SpecError(
            f"{folder} is not the image of a bundle: it starts no server from {_VENV}.",
            "Build the bundle's own Dockerfile, and give that image's layout.",
        )
    return image


def _write(
    root: Path, files: list[str], draft: Path, image: oci_layout.Image | None, base: Path | None, tag: str
) -> Packaged:
    oci_layout.start(draft)
    home = own_image.HOME.lstrip("/")
    paths = [*files, MANIFEST]
    weights = {f"{home}/{path}": root / path for path in paths if path.startswith("model/")}
    rest = {f"{home}/{path}": root / path for path in paths if not path.startswith("model/")}
    scripts = {f"{home}/{name}" for name in _SCRIPTS}
    added = [("weights", weights), ("bundle", rest)] if weights else [("bundle", rest)]
    layers = [oci_layout.add_layer(draft, given, scripts) for _, given in added]
    config = _config(image, [what for what, _ in added], layers, bool(weights))
    if image and base:
        oci_layout.copy_layers(base, draft, image.layers)
    layers = [*(image.layers if image else []), *layers]
    digest = oci_layout.finish(draft, config, layers, _annotations(root, tag))
    size = sum(each["size"] for each in layers)
    return Packaged(layout=str(draft), digest=digest, tag=tag, bytes=size, runs=image is not None)


def _config(
    image: oci_layout.Image | None, added: list[str], layers: list[dict[str, Any]], weights: bool
) -> dict[str, Any]:
    """Configuration of the image: the base's, with where code and weights lie."""
    own = [{"created": _EPOCH, "created_by": f"mii-azure package: {what}"} for what in added]
    found: dict[str, Any] = image.config if image else {"architecture": "amd64", "os": "linux"}
    settings = dict(found.get("config") or {})
    if image:
        settings["Env"] = _variables(settings.get("Env") or [], weights)
    below = found.get("rootfs", {}).get("diff_ids", [])
    # An uncompressed layer's digest is that of its tar, which is what a diff id is.
    return {
        **found,
        "created": _EPOCH,
        "config": settings,
        "rootfs": {"type": "layers", "diff_ids": [*below, *(each["digest"] for each in layers)]},
        "history": [*found.get("history", []), *own],
    }


def _variables(given: list[str], weights: bool) -> list[str]:
    own = {"AML_APP_ROOT": f"{own_image.HOME}/code", "AZUREML_ENTRY_SCRIPT": "score.py"}
    if weights:
        own["AZUREML_MODEL_DIR"] = f"{own_image.HOME}/model"
    return [*(each for each in given if each.partition("=")[0] not in own), *(f"{k}={v}" for k, v in own.items())]


def _annotations(root: Path, tag: str) -> dict[str, str]:
    settings = Inspected(root).settings
    return {
        "org.opencontainers.image.created": _EPOCH,
        "org.opencontainers.image.title": settings.name if settings else root.name,
        "org.opencontainers.image.version": tag,
        "io.mii-azure.version": __version__,
        "io.mii-azure.task": settings.task if settings else "",
    }
