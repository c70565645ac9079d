"""From a model and a task to a folder that Azure ML deploys as it stands.

Names are imported when first used, so that `import mii_azure` is instant.
"""

import importlib
from typing import TYPE_CHECKING, Any

from mii_azure.version import __version__ as __version__

if TYPE_CHECKING:
    from mii_azure.benchmark import bench as bench
    from mii_azure.checks import check as check
    from mii_azure.deployments import DeploymentType as DeploymentType
    from mii_azure.deployments import async_client as async_client
    from mii_azure.deployments import client as client
    from mii_azure.deployments import deploy as deploy
    from mii_azure.deployments import terminate as terminate
    from mii_azure.differences import diff as diff
    from mii_azure.errors import MiiAzureError as MiiAzureError
    from mii_azure.generation import generate as generate
    from mii_azure.planning import plan as plan
    from mii_azure.preparing import prepare as prepare
    from mii_azure.spec import Spec as Spec
    from mii_azure.verdict import parity as parity
    from mii_azure.verifying import verify_bundle as verify  # noqa: F401  (named apart from manifest.verify)

_NAMES = {
    "DeploymentType": "mii_azure.deployments:DeploymentType",
    "MiiAzureError": "mii_azure.errors:MiiAzureError",
    "Spec": "mii_azure.spec:Spec",
    "async_client": "mii_azure.deployments:async_client",
    "bench": "mii_azure.benchmark:bench",
    "check": "mii_azure.checks:check",
    "client": "mii_azure.deployments:client",
    "deploy": "mii_azure.deployments:deploy",
    "diff": "mii_azure.differences:diff",
    "generate": "mii_azure.generation:generate",
    "parity": "mii_azure.verdict:parity",
    "plan": "mii_azure.planning:plan",
    "prepare": "mii_azure.preparing:prepare",
    "terminate": "mii_azure.deployments:terminate",
    "verify": "mii_azure.verifying:verify_bundle",
}

__all__ = [*_NAMES, "__version__"]


def __getattr__(name: str) -> Any:
    try:
        module, _, attribute = _NAMES[name].partition(":")
    except KeyError:
        raise AttributeError(f"module 'mii_azure' has no attribute {name!r}") from None
    value = getattr(importlib.import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
