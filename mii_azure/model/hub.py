"""Hugging Face hub: facts by range requests, and downloads of the files that a bundle needs.

The hub client handles the token (HF_TOKEN or its login); it is never read or printed here.
"""

from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mii_azure.errors import ConfigMissing, ModelError, PickleRefused, UnknownModel, WeightsCorrupt, WeightsMissing
from mii_azure.model import diffusers, published, safetensors, sentence
from mii_azure.model import recorded as recorded_models
from mii_azure.model.files import shards
from mii_azure.model.folder import SETTINGS, bundle_files, read_folder, weigh
from mii_azure.model.resolved import INDEX, WEIGHTS, Model, is_pickle, read_settings
from mii_azure.model.safetensors import Tensor
from scoring.config import DIFFUSERS_INDEX, MODULES

TIMEOUT_S = 20  # for one request to the hub

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import ModelInfo


def read_model(model: str, revision: str | None, allow_pickle: bool, near_folder: str = "") -> Model:
    """Read config.json and the weights' headers of a hub model, pinned to a commit; no weights are downloaded.

    Without a network the hub client's cache is used, then the facts recorded for the seed's models. Raises as
    `resolving.resolve` does.
    """
    try:
        info = _info(model, revision, near_folder)
    except _Unreachable as error:
        cached = _cached(model, revision, allow_pickle)
        if cached:
            return cached
        recorded = recorded_models.find(model)
        if recorded:
            return recorded.model()
        raise _unreachable(model, error, near_folder) from error
    return _read(info, allow_pickle)


def download(model: str, revision: str | None = None, allow_pickle: bool = False, code: bool = False) -> Path:
    """Download the files that a bundle needs of a hub model, with the hub client's progress bar, into its cache.

    Returns the folder of that commit there, where the next run (and one without a network) finds it.
    """
    from huggingface_hub import snapshot_download

    try:
        info = _info(model, revision)
        listed = _modules(info)
        # The card is read for the licence, and not copied.
        names = [*bundle_files(_names(info), allow_pickle, code, listed), "README.md"]
        return Path(str(snapshot_download(model, revision=info.sha, allow_patterns=names)))
    except _Unreachable as error:
        cached = _cached(model, revision, allow_pickle)
        if cached and cached.folder:
            return cached.folder
        raise _unreachable(model, error) from error
    except OSError as error:
        raise UnknownModel(
            f"{model} could not be downloaded: {error}.", "Try again; finished files are kept."
        ) from error


def _cached(model: str, revision: str | None, allow_pickle: bool) -> Model | None:
    """Find the model in the hub client's cache, from an earlier download, if complete."""
    from huggingface_hub import try_to_load_from_cache

    names = ("config.json", DIFFUSERS_INDEX, MODULES)
    found = next(
        (p for name in names if isinstance(p := try_to_load_from_cache(model, name, revision=revision), str)), None
    )
    if found is None:
        return None
    folder = Path(found).parent
    try:
        return replace(read_folder(folder, model, allow_pickle), source="hub", revision=folder.name)
    except ModelError:
        return None


class _Unreachable(Exception):
    """Raised if the hub did not answer: no network, a proxy, or HF_HUB_OFFLINE."""


def _unreachable(model: str, error: Exception, near_folder: str = "") -> UnknownModel:
    near = get_close_matches(model, recorded_models.names(), n=1, cutoff=0.6)
    hint = "Check the network and HF_HUB_OFFLINE, or give a folder that holds the model."
    if near_folder:
        hint = f"Did you mean {near_folder}? {hint}"
    elif near:
        hint += f" Facts of {near[0]} are recorded here, if you meant that."
    return UnknownModel(f"There is no folder {model}, and the hub cannot be asked about it: {error}.", hint)


def _info(repo: str, revision: str | None, near_folder: str = "") -> "ModelInfo":
    """Ask the hub about a repository; raise UnknownModel, distinguishing not found, gated and no such revision."""
    import httpx2  # the hub client's HTTP library
    from huggingface_hub import errors

    try:
        return _api().model_info(repo, revision=revision, files_metadata=True, timeout=TIMEOUT_S)
    except errors.GatedRepoError as error:
        raise UnknownModel(
            f"{repo} is gated: its owner grants access one by one.",
            "Accept its terms at its page on the hub, then log in (`hf auth login`) or set HF_TOKEN.",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UnknownModel(f"{repo} has no revision {revision!r}.", "Leave it out to take main.") from error
    except errors.RepositoryNotFoundError as error:
        near = near_folder or next(iter(get_close_matches(repo, recorded_models.names(), n=1, cutoff=0.6)), "")
        hint = f"Did you mean {near}?" if near else "Check the spelling: OWNER/NAME."
        raise UnknownModel(
            f"There is no folder {repo}, and no public model of that name on the hub.",
            f"{hint} If it is private, log in (`hf auth login`) or set HF_TOKEN.",
        ) from error
    except errors.HFValidationError as error:
        raise UnknownModel(f"{repo!r} is neither a folder nor a hub id.", "Hub ids look like OWNER/NAME.") from error
    except errors.OfflineModeIsEnabled as error:
        raise _Unreachable("HF_HUB_OFFLINE is set") from error
    except errors.HfHubHTTPError as error:
        raise _Unreachable(f"it answered {error.response.status_code}") from error
    except httpx2.TransportError as error:
        raise _Unreachable(f"no connection ({type(error).__name__})") from error


def _api() -> "HfApi":
    from huggingface_hub import HfApi

    return HfApi(library_name="mii-azure")


def _names(info: "ModelInfo") -> list[str]:
    return [sibling.rfilename for sibling in info.siblings or []]


def _modules(info: "ModelInfo") -> Any:
    """Parsed modules.json of a repository; None without one."""
    return _small_file(info.id, MODULES, str(info.sha)) if MODULES in _names(info) else None


def _read(info: "ModelInfo", allow_pickle: bool) -> Model:
    names, repo, commit = _names(info), info.id, str(info.sha)
    if diffusers.is_pipeline(names):
        return _read_pipeline(info, allow_pickle)
    listed = _modules(info)
    inner = sentence.transformer_path(listed, names)
    base = f"{inner}/" if inner else ""
    if f"{base}config.json" not in names:
        kind = "not a transformers model"
        kind = (
            "an adapter: give its base as the model, and a copy of it by --adapter, which merges the two"
            if "adapter_config.json" in names
            else kind
        )
        raise ConfigMissing(f"{repo} has no config.json on the hub.", f"It is {kind}.")
    config = _small_file(repo, f"{base}config.json", commit)
    published.refuse_unread(config)
    tensors, size = _weights(info, allow_pickle, base)
    settings = {name: _small_file(repo, base + name, commit) for name in SETTINGS if base + name in names}
    settings |= {} if listed is None else {MODULES: listed}
    settings |= {name: _small_file(repo, name, commit) for name in sentence.setting_files(listed, names)}
    weights = weigh(config, tensors, size)
    return Model(repo, "hub", config, weights, commit, None, settings, frozenset(names), inner)


def _read_pipeline(info: "ModelInfo", allow_pickle: bool) -> Model:
    sizes = {sibling.rfilename: sibling.size or 0 for sibling in info.siblings or []}
    repo, commit = info.id, str(info.sha)
    files = diffusers.PipelineFiles(
        sizes, lambda name: _small_file(repo, name, commit), lambda name: _header(info, name, sizes[name])
    )
    return diffusers.read_pipeline(files, repo, "hub", allow_pickle, revision=commit)


def _small_file(repo: str, name: str, commit: str) -> Any:
    return read_settings(Path(_api().hf_hub_download(repo, name, revision=commit)))


def _weights(info: "ModelInfo", allow_pickle: bool, base: str) -> tuple[list[Tensor], int]:
    """Read the tensors of the weight files that transformers would load, by range requests, and the files' size.

    `base` is the folder of those files, with its slash, or "".
    """
    sizes = {sibling.rfilename: sibling.size or 0 for sibling in info.siblings or []}
    if base + WEIGHTS in sizes:
        files = [base + WEIGHTS]
    elif base + INDEX in sizes:
        index = _small_file(info.id, base + INDEX, str(info.sha))
        files = [base + name for name in shards(index, INDEX)]
    else:
        own = {name.removeprefix(base): size for name, size in sizes.items() if name.startswith(base)}
        return [], _pickle_bytes(info.id, own, allow_pickle)
    lost = [name for name in files if name not in sizes]
    if lost:
        raise WeightsMissing(f"{INDEX} of {info.id} names {lost}, not in it.", "Ask its owner.")
    tensors = [tensor for name in files for tensor in _header(info, name, sizes[name])]
    return tensors, sum(sizes[name] for name in files)


def _header(info: "ModelInfo", name: str, size: int) -> list[Tensor]:
    from huggingface_hub.errors import SafetensorsParsingError

    try:
        header = _api().parse_safetensors_file_metadata(info.id, name, revision=info.sha)
    except SafetensorsParsingError as error:
        raise WeightsCorrupt(
            f"{name} of {info.id} is damaged: {error}.", "Ask its owner, or pin a revision."
        ) from error
    end = max((tensor.data_offsets[1] for tensor in header.tensors.values()), default=0)
    if size and end + 8 > size:
        raise WeightsCorrupt(f"{name} of {info.id} is cut short.", "Ask its owner, or pin another revision.")
    try:
        return [
            safetensors.checked(key, {"dtype": tensor.dtype, "shape": list(tensor.shape)})
            for key, tensor in header.tensors.items()
        ]
    except (TypeError, ValueError) as error:
        raise WeightsCorrupt(f"{name} of {info.id} is damaged: {error}.", "Ask its owner.") from error


def _pickle_bytes(repo: str, sizes: dict[str, int], allow_pickle: bool) -> int:
    pickles = [name for name in sizes if "/" not in name and is_pickle(name)]
    if not pickles:
        raise WeightsMissing(f"{repo} has no {WEIGHTS}, {INDEX} or PyTorch weights.", "Use another variant.")
    if not allow_pickle:
        raise PickleRefused(
            f"{repo} has pickle weights only ({pickles[0]}); loading a pickle can run any code it holds.",
            "Pass --allow-pickle if you trust its author, or a --revision that has safetensors (often refs/pr/1).",
        )
    return sum(sizes[name] for name in pickles)
