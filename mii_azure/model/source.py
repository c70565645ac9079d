"""Sources of a model: a local folder, a Hugging Face hub id, or an azureml: reference."""

import os
import re
from difflib import get_close_matches
from pathlib import Path

from mii_azure.errors import UnknownModel
from mii_azure.model import hub
from mii_azure.model.files import refuse_odd_names
from mii_azure.model.folder import read_folder
from mii_azure.model.gguf import gguf_file, read_gguf
from mii_azure.model.resolved import Model
from mii_azure.model.safetensors import Weights
from mii_azure.platform.paths import exists, expanded

AZUREML = re.compile(
    r"^azureml:(?://(?:registries/[\w.-]+/models/[\w.-]+/(?:versions|labels)/[\w.-]+"
    r"|datastores/[\w.-]+/paths/.+|jobs/.+|subscriptions/.+)"
    r"|[a-zA-Z0-9][\w.-]{0,254}(?::\d[\w.-]*|@latest)|/subscriptions/.+)$"
)
_FILES = re.compile(r"^azureml://(?:datastores/|jobs/|subscriptions/.+/datastores/)")
# The hub's own rule: an optional owner, then a name, of letters, digits, hyphens, dots and underscores.
HUB_ID = re.compile(r"^(?:[\w][\w.-]{0,95}/)?[\w][\w.-]{0,95}$", re.ASCII)


def resolve(model: str, revision: str | None = None, allow_pickle: bool = False) -> Model:
    """Find a model and read the facts that planning needs.

    Raises UnknownModel, ConfigMissing, WeightsMissing, WeightsCorrupt, PickleRefused, OutsideFolder or NotAvailable.
    """
    if model.startswith("azureml:"):
        return _reference(model)
    # os.path returns False, not an error, for text that cannot be a path.
    path = expanded(model)
    if model and exists(path) and (found := _local(path, model, allow_pickle)):
        return _with_plain_names(found)
    if model and os.path.exists(path):  # noqa: PTH110
        raise UnknownModel(f"{model} is a file.", f"Give the folder that holds it: {path.parent}.")
    if _looks_like_path(model):
        near = _near_folder(path)
        raise UnknownModel(
            f"There is no folder {model!r}.", f"Did you mean {near}?" if near else "Check the path, or give a hub id."
        )
    return _with_plain_names(hub.read_model(model, revision, allow_pickle, near_folder=_near_folder(path)))


def _local(path: Path, model: str, allow_pickle: bool) -> Model | None:
    """Model of a file or folder of this machine; None for a file that is no model."""
    try:
        if file := gguf_file(path):
            return read_gguf(file, model, path if path.is_dir() else None)
        return read_folder(path, model, allow_pickle) if path.is_dir() else None
    except OSError as error:
        raise UnknownModel(f"{model} cannot be read: {error.strerror}.", "Check its permissions.") from error


def local_folder(model: str) -> Path:
    """Folder of the files of a model on this machine; of a GGUF file, what it is converted to.

    Raises what `resolve` and `gguf_conversion.converted` raise.
    """
    path = expanded(model)
    if file := gguf_file(path):
        from mii_azure.model.gguf_conversion import converted

        return converted(file)
    return path


def _with_plain_names(model: Model) -> Model:
    refuse_odd_names(model.config, model.settings)
    return model


def names_files(reference: str) -> bool:
    """True if an azureml: reference is a location of files, and not yet a model that a deployment can name."""
    return bool(_FILES.match(reference))


def _reference(model: str) -> Model:
    if not AZUREML.match(model):
        raise UnknownModel(
            f"{model!r} is not a reference that Azure ML reads.",
            "Forms: azureml:NAME:VERSION, azureml:NAME@latest, azureml://registries/REGISTRY/models/NAME/versions/VERSION,"
            " azureml://datastores/NAME/paths/PATH, azureml://jobs/JOB/outputs/artifacts/paths/PATH.",
        )
    return Model(model, "reference", {}, Weights(0, 0, ""))


def _looks_like_path(model: str) -> bool:
    return not HUB_ID.match(model) or model.startswith((".", "/", "~"))


def _near_folder(path: Path) -> str:
    """Folder whose name is nearest to the missing one's, its parents' names too, or an empty string."""
    if not os.path.isdir(path.parent):  # noqa: PTH112
        parent = _near_folder(path.parent) if path.parent != path else ""
        other = Path(parent) / path.name
        return (str(other) if os.path.isdir(other) else _near_folder(other)) if parent else ""  # noqa: PTH112
    names = [child.name for child in path.parent.iterdir() if child.is_dir() and not child.name.startswith(".")]
    near = get_close_matches(path.name, names, n=1, cutoff=0.6)
    return str(path.parent / near[0]) if near else ""
