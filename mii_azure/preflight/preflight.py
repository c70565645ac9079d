"""Questions that only Azure can answer, asked before any deployment: an ordered list, each with Azure's answer."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mii_azure.bundle.bundle_view import DEPLOYMENT, Inspected, is_bundle
from mii_azure.bundle.findings import Finding, Severity
from mii_azure.bundle.standalone_yaml import views
from mii_azure.errors import AccessDenied, AzureError, AzureUnavailable
from mii_azure.preflight import access, capacity, endpoint
from mii_azure.preflight.scene import AzureAnswer, Scene, Verdict

_SEVERITIES: dict[Verdict, Severity] = {"yes": "info", "no": "error", "note": "warning", "unverified": "info"}


class OnlineFinding(Finding):
    """Answer of Azure to one question; `verdict` is unverified if Azure, or a missing permission, leaves it open."""

    question: str
    verdict: Verdict
    code: str = ""  # of the error that deploying would raise
    azure_code: str = ""
    request_id: str = ""


class Question(NamedTuple):
    """Question to Azure; `permission` is the one that asking it needs."""

    id: str
    what: str
    limit: str
    permission: str
    ask: Callable[[Scene], Iterator[AzureAnswer]]


_READER = "Reader on the workspace"
# In order: nothing is asked after a question about the workspace that is answered no.
QUESTIONS: tuple[Question, ...] = (
    Question("MII801", "workspace", "The workspace", _READER, endpoint.workspace),
    Question("MII802", "your permissions", "Azure RBAC on the workspace", _READER, access.caller),
    Question(
        "MII803",
        "instance type",
        "Azure ML: sizes in the region; Azure Compute: QuotaId",
        "Reader on the subscription",
        capacity.offered,
    ),
    Question("MII804", "quota", "Cores of the family and the region", "Reader on the subscription", capacity.quota),
    Question(
        "MII805",
        "capacity",
        "Azure Compute: NotAvailableForSubscription",
        "Reader on the subscription",
        capacity.capacity,
    ),
    Question("MII806", "name", "Endpoint names are unique in a region", "Reader on the subscription", endpoint.name),
    Question(
        "MII807",
        "identity",
        "Roles of the endpoint's identity",
        "Microsoft.Authorization/roleAssignments/read on registry and storage",
        access.identities,
    ),
    Question("MII808", "registry", "The workspace's registry", "Reader on the registry", access.registry),
    Question("MII809", "references", "Assets of the workspace", _READER, endpoint.references),
    Question("MII810", "cluster", "Computes of the workspace", _READER, endpoint.cluster),
    Question("MII811", "secrets", "Connections of the workspace", _READER, access.secrets),
    Question("MII812", "slots and traffic", "The endpoint", _READER, endpoint.slots),
    Question("MII813", "network", "The workspace's managed network", _READER, endpoint.network),
)
_OF_MACHINES = ("MII801", "MII803", "MII804", "MII805")


def online(target: Path | str, client: Any, slot: str | None = None) -> list[OnlineFinding]:
    """Ask a workspace every question about a bundle, or YAML alone; `slot` overrides the deployment's name.

    Changes nothing in Azure. A question that may not be asked is answered `unverified`, with Azure's reason.
    """
    root = Path(target)
    seen = [view for view in ([Inspected(root)] if is_bundle(root) else views(root)) if view.kind != "kaito"]
    found: dict[tuple[str, str], OnlineFinding] = {}
    for inspected in seen:
        for finding in _asked(inspected, client, slot, QUESTIONS):
            found.setdefault((finding.id, finding.message), finding)
    return list(found.values())


def afford(instance_type: str, instances: int, client: Any) -> list[OnlineFinding]:
    """Ask a workspace only if it can have these machines: offered, within quota, not restricted."""
    asked = _Machines({"instance_type": instance_type, "instance_count": instances})
    return list(_asked(asked, client, None, tuple(entry for entry in QUESTIONS if entry.id in _OF_MACHINES)))


class _Machines(Inspected):
    """Managed deployment of which only the machines are known."""

    def __init__(self, deployment: dict[str, Any]) -> None:
        super().__init__(Path(), {})
        self._yamls[DEPLOYMENT] = (deployment, None, "")


def _asked(
    bundle: Inspected, client: Any, slot: str | None, questions: tuple[Question, ...]
) -> Iterator[OnlineFinding]:
    from mii_azure.azure.arm import Arm
    from mii_azure.azure.errors import translated

    arm = Arm(client)
    scene = Scene(bundle, client, arm, slot)
    try:
        for question in questions:
            try:
                with translated():
                    answers = list(question.ask(scene))
            except AzureError as error:
                yield _untold(question, error)
                if question is questions[0]:
                    return
            else:
                yield from (_finding(question, answer) for answer in answers)
    finally:
        arm.close()


def _finding(question: Question, answer: AzureAnswer, azure_code: str = "", request_id: str = "") -> OnlineFinding:
    return OnlineFinding(
        id=question.id,
        severity=_SEVERITIES[answer.verdict],
        message=answer.message,
        remedy=answer.remedy,
        file="",
        limit=question.limit,
        fixable=False,
        question=question.what,
        verdict=answer.verdict,
        code=answer.code,
        azure_code=azure_code,
        request_id=request_id,
    )


def _untold(question: Question, error: AzureError) -> OnlineFinding:
    """Answer for an open question, which a missing permission or an unavailable service leaves without a verdict."""
    open_ = isinstance(error, AccessDenied | AzureUnavailable)
    remedy = f"Asking takes {question.permission}." if isinstance(error, AccessDenied) else error.hint
    answer = AzureAnswer("unverified" if open_ else "no", error.message, remedy, error.code)
    return _finding(question, answer, azure_code=error.azure_code, request_id=error.request_id)
