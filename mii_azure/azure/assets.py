"""Environment and model assets: registered once per content, because the version is the content's hash."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from mii_azure.azure.client import shown_progress
from mii_azure.errors import UploadFailed

_STORE = "workspaceblobstore"


def ensure_environment(client: Any, bundle: Path) -> str:
    """Register environment.yml unless that version exists; return its `azureml:` reference."""
    from azure.ai.ml import load_environment

    asset = load_environment(bundle / "environment.yml")
    _ensure(client, client.environments, asset, bundle / "environment")
    return f"azureml:{asset.name}:{asset.version}"


def ensure_model(client: Any, bundle: Path) -> str | None:
    """Upload and register model.yml unless that version exists; None if the bundle refers to a model instead."""
    if not (bundle / "model.yml").is_file():
        return None
    from azure.ai.ml import load_model

    asset = load_model(bundle / "model.yml")
    _ensure(client, client.models, asset, bundle / "model")
    return f"azureml:{asset.name}:{asset.version}"


def exists(read: Callable[[], Any]) -> Any | None:
    """Result of `read`, or None if Azure has no such resource."""
    from azure.core.exceptions import ResourceNotFoundError

    try:
        return read()
    except ResourceNotFoundError:
        return None


def _ensure(client: Any, operations: Any, asset: Any, folder: Path) -> None:
    from azure.core.exceptions import HttpResponseError, ResourceExistsError

    if exists(lambda: operations.get(asset.name, asset.version)) is not None:
        return
    with shown_progress(client):
        try:
            operations.create_or_update(asset)
        except ResourceExistsError as error:
            if getattr(error, "error_code", "") != "BlobAlreadyExists":
                raise
            _permit_overwriting(client, folder, str(error.response.request.url))
            operations.create_or_update(asset)
        except HttpResponseError as error:
            if ".blob." in urlsplit(str(getattr(getattr(error.response, "request", None), "url", ""))).netloc:
                raise _upload_failed(folder, error) from error
            raise


def _upload_failed(folder: Path, error: Any) -> Exception:
    from mii_azure.azure.errors import translate

    told = translate(error)
    return UploadFailed(
        f"Uploading {folder.name} was cut short. {told.message}",
        f"{told.hint} Files that arrived are sent again; large models upload faster with AzCopy to a datastore path.",
        azure_code=told.azure_code,
        request_id=told.request_id,
    )


def _permit_overwriting(client: Any, folder: Path, url: str) -> None:
    """Make the client repeat an upload that was cut short.

    azure-ai-ml overwrites leftovers only if the first file by name is among them; as files are uploaded in parallel, it
    may be the missing one. An empty blob in its place, without the mark of a finished upload, avoids this.
    """
    from azure.ai.ml._artifacts._artifact_utilities import get_datastore_info
    from azure.ai.ml._utils._storage_utils import get_storage_client

    store = get_storage_client(**get_datastore_info(client.datastores, _STORE))
    path = unquote(urlsplit(url).path).lstrip("/").partition("/")[2]
    prefix = path[: path.index(f"/{folder.name}/") + len(folder.name) + 2]
    first = min(str(entry.relative_to(folder).as_posix()) for entry in folder.rglob("*") if entry.is_file())
    store.container_client.upload_blob(prefix + first, b"", overwrite=True)
