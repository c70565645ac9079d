"""Client of a workspace, and waiting for Azure's long-running operations."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from local_runner.flags.flag import twin
from mii_azure.azure.errors import translated
from mii_azure.azure.sign_in import KeptTokens, credential
from mii_azure.errors import NotSignedIn, SpecError

if TYPE_CHECKING:
    from azure.ai.ml import MLClient

Say = Callable[[str], None]
SCOPE = ("subscription", "resource_group", "workspace")
_SAY_EVERY_S = 15.0
_JOIN_S = 0.5  # short, so that Ctrl-C takes effect at once


def connect(subscription: str | None = None, resource_group: str | None = None, workspace: str | None = None) -> Any:
    """Create an MLClient under this process's identity.

    Missing values come from MII_AZURE_SUBSCRIPTION and its siblings. Raises SpecError naming what is missing.
    """
    given = dict(zip(SCOPE, (subscription, resource_group, workspace), strict=True))
    scope = {name: value or os.environ.get(twin(name)) for name, value in given.items()}
    missing = [f"--{name.replace('_', '-')}" for name, value in scope.items() if not value]
    if missing:
        raise SpecError(f"Which workspace? {', '.join(missing)} missing.", "Each has a twin, e.g. MII_AZURE_WORKSPACE.")
    from azure.ai.ml import MLClient

    with translated():
        try:
            return MLClient(
                KeptTokens(credential()), scope["subscription"], scope["resource_group"], scope["workspace"]
            )
        except ValueError as error:
            raise NotSignedIn(f"The client was not made: {error}.", "Run `az login`.") from error


def wait(poller: Any, say: Say, what: str) -> Any:
    """Wait for a long-running operation, reporting every 15 seconds that it still runs; Ctrl-C takes effect at once."""
    began = said = time.monotonic()
    while not poller.done():
        poller.wait(_JOIN_S)
        now = time.monotonic()
        if now - said >= _SAY_EVERY_S:
            said = now
            say(f"{what}: {poller.status()}, {now - began:.0f} s")
    return poller.result()


@contextmanager
def shown_progress(client: "MLClient") -> Iterator[None]:
    """Show the progress bar of uploads: without it azure-ai-ml 1.35 never checks a failed upload and waits for ever."""
    config = getattr(client, "_operation_config", None)
    before = getattr(config, "_show_progress", True)
    if config is not None:
        config._show_progress = True
    try:
        yield
    finally:
        if config is not None:
            config._show_progress = before
