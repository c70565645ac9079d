"""Azure OpenAI's paths over the routes of /v1: /openai/v1/..., and /openai/deployments/NAME/..."""

from typing import Any
from urllib.parse import unquote

from local_runner.errors import DeploymentNotFound, ModelNotServed
from scoring.errors import MiiAzureError

PREFIX = "/openai/"
_DEPLOYMENT = "azure_deployment"  # of a request's scope


class AzurePaths:
    """ASGI middleware that answers Azure OpenAI's paths as those of /v1; a deployment's name stands for the model's."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"].startswith(PREFIX):
            scope = _as_v1(scope)
        await self._app(scope, receive, send)


def _as_v1(scope: dict[str, Any]) -> dict[str, Any]:
    """The scope with the path of /v1 that it stands for; unchanged if there is none."""
    raw = (scope.get("raw_path") or scope["path"].encode()).decode("latin-1")
    rest = raw.removeprefix(PREFIX)
    if rest.startswith("v1/"):
        return _moved(scope, f"/{rest}")
    kind, _, behind = rest.partition("/")
    name, slash, what = behind.partition("/")
    if kind == "deployments" and name and slash:
        return {**_moved(scope, f"/v1/{what}"), _DEPLOYMENT: unquote(name)}
    # Without a deployment: the list of models, and what names its model in the body.
    return _moved(scope, f"/v1/{rest}") if kind in ("models", "responses") else scope


def _moved(scope: dict[str, Any], path: str) -> dict[str, Any]:
    return {**scope, "path": unquote(path), "raw_path": path.encode("latin-1")}


def with_deployment(scope: Any, sent: dict[str, Any]) -> dict[str, Any]:
    """Body of a request whose path may name the deployment: that is its model, as at Azure."""
    name = scope.get(_DEPLOYMENT)
    return sent if name is None else {**sent, "model": name}


def in_words_of(scope: Any, error: MiiAzureError) -> MiiAzureError:
    """The error as clients of Azure know it: a path that names no deployment of ours has a code of its own there."""
    if _DEPLOYMENT in scope and isinstance(error, ModelNotServed):
        return DeploymentNotFound(error.message, error.hint, error.where)
    return error
