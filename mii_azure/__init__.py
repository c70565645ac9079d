"""Generator of a folder, from a model and a task, that Azure ML deploys as it stands.

Names are imported when first used, so that `import mii_azure` is instant.
"""

import importlib
from typing import TYPE_CHECKING, Any

from mii_azure.own_packages import put_first
from mii_azure.version import __version__ as __version__

put_first()

if TYPE_CHECKING:
    from mii_azure.bundle.diff import diff as diff
    from mii_azure.bundle.package import package as package
    from mii_azure.bundle.prepare import prepare as prepare
    from mii_azure.bundle.verify import verify_bundle  # named apart from manifest.verify
    from mii_azure.checks.check import check as check
    from mii_azure.errors import MiiAzureError as MiiAzureError
    from mii_azure.planning.planner import plan as plan
    from mii_azure.sdk.deployments import DeploymentType as DeploymentType
    from mii_azure.sdk.deployments import async_client as async_client
    from mii_azure.sdk.deployments import client as client
    from mii_azure.sdk.deployments import deploy as deploy
    from mii_azure.sdk.deployments import terminate as terminate
    from mii_azure.sdk.generate import generate as generate
    from mii_azure.spec import Spec as Spec
    from mii_azure.verdict.benchmark import bench as bench
    from mii_azure.verdict.parity import parity as parity
    from mii_azure.verdict.sweep import sweep as sweep

    verify = verify_bundle

_NAMES = {
    "DeploymentType": "mii_azure.sdk.deployments:DeploymentType",
    "MiiAzureError": "mii_azure.errors:MiiAzureError",
    "Spec": "mii_azure.spec:Spec",
    "async_client": "mii_azure.sdk.deployments:async_client",
    "bench": "mii_azure.verdict.benchmark:bench",
    "check": "mii_azure.checks.check:check",
    "client": "mii_azure.sdk.deployments:client",
    "deploy": "mii_azure.sdk.deployments:deploy",
    "diff": "mii_azure.bundle.diff:diff",
    "generate": "mii_azure.sdk.generate:generate",
    "package": "mii_azure.bundle.package:package",
    "parity": "mii_azure.verdict.parity:parity",
    "plan": "mii_azure.planning.planner:plan",
    "prepare": "mii_azure.bundle.prepare:prepare",
    "sweep": "mii_azure.verdict.sweep:sweep",
    "terminate": "mii_azure.sdk.deployments:terminate",
    "verify": "mii_azure.bundle.verify:verify_bundle",
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
