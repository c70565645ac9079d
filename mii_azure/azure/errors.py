"""Translation of Azure's errors: a table from its codes and sentences to our errors, each with a remedy."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from mii_azure import errors
from mii_azure.errors import AzureError

_MAX_SENTENCE = 1000


class Cause(NamedTuple):
    """Row of the table: if `pattern` is found in Azure's code and sentence, the error class and remedy."""

    pattern: str
    error: type[AzureError]
    summary: str
    remedy: str


# In order; the first row that matches decides.
CAUSES: tuple[Cause, ...] = (
    Cause(
        r"liveness probe|readiness probe",
        errors.ContainerNotReady,
        "The container did not answer its probes.",
        "Read `mii-azure logs`; if the model was still loading, raise the probes' initial_delay or failure_threshold.",
    ),
    Cause(
        r"OutOfMemory|OOMKilled|out of memory",
        errors.ContainerNotReady,
        "The container ran out of memory.",
        "Choose an instance type with more memory; `mii-azure plan` says which fit.",
    ),
    Cause(
        r"ImageBuildFail|image build|BuildError|building the image",
        errors.ImageNotBuilt,
        "The environment's image was not built.",
        "Read the build log in the workspace's studio under Environments; a private network needs a build compute.",
    ),
    Cause(
        r"AcrPull|container registry.*(denied|unauthori[sz]ed)|unauthori[sz]ed.*azurecr",
        errors.AccessDenied,
        "The endpoint's identity may not read the container registry.",
        "Give it the role AcrPull on the workspace's registry.",
    ),
    Cause(
        r"AuthorizationFailed|does not have authorization",  # the sentence names what was requested, e.g. quotas
        errors.AccessDenied,
        "This identity lacks a role.",
        "Take the role AzureML Data Scientist on the workspace, or one that allows what the message names.",
    ),
    Cause(
        r"OutOfQuota|quota",
        errors.QuotaExceeded,
        "The subscription's quota does not reach.",
        "Ask for more cores of this family, or choose a smaller type; `mii-azure plan` says how many it takes.",
    ),
    Cause(
        r"OutOfCapacity|ZonalAllocationFailed|AllocationFail|insufficient capacity|no capacity",
        errors.NoCapacity,
        "Azure has none of these instances free in this region now.",
        "Run the same command later, or choose another instance type or region.",
    ),
    Cause(
        r"(Sku|VmSize)Not|InvalidVmSize|(sku|instance type|vm size).*(not|unsupported)",
        errors.InstanceTypeNotOffered,
        "This instance type is not offered to this workspace.",
        "Choose another one; `mii-azure plan` ranks those that fit.",
    ),
    Cause(
        r"(name).*(taken|in use|already exists|not available)|NameConflict|NameNotAvailable",
        errors.NameTaken,
        "The endpoint's name is taken: names are unique in a region.",
        "Generate the bundle under another --name.",
    ),
    Cause(
        r"(Expired|Invalid)AuthenticationToken|AADSTS|CredentialUnavailable|failed to retrieve a token",
        errors.NotSignedIn,
        "Azure does not accept the sign-in.",
        "Run `az login`, or check the identity that this process runs under, and run the same command again.",
    ),
    Cause(
        r"AuthorizationPermissionMismatch|AuthorizationFailure|SasToken|Server failed to authenticate",
        errors.AccessDenied,
        "The workspace's storage refused the upload.",
        "Take the role Storage Blob Data Contributor on the storage account, or check its firewall.",
    ),
    Cause(
        r"Forbidden",
        errors.AccessDenied,
        "This identity lacks a role.",
        "Take the role AzureML Data Scientist on the workspace, or one that allows what the message names.",
    ),
    Cause(
        r"ResourceNotReady|OperationFailed|ContainerCrash|crash",
        errors.ContainerNotReady,
        "The deployment did not become ready.",
        "Read `mii-azure logs`: the last exception there is the reason.",
    ),
)
_BY_STATUS: dict[int, Cause] = {
    401: Cause("", errors.NotSignedIn, "Azure does not accept the sign-in.", "Run `az login` and the command again."),
    403: Cause("", errors.AccessDenied, "This identity lacks a role.", "Ask for the role that the message names."),
    404: Cause(
        "",
        errors.NotInAzure,
        "Azure does not know it.",
        "Check subscription, resource group, workspace and the endpoint's name.",
    ),
    409: Cause("", errors.AzureUnavailable, "Another operation is under way.", "Wait and run the same command again."),
    429: Cause("", errors.AzureUnavailable, "Azure takes no more requests now.", "Wait a minute and run it again."),
}
_TROUBLE = Cause("", errors.AzureUnavailable, "Azure failed to answer.", "Run the same command again.")
_UNREACHED = Cause(
    "", errors.AzureUnavailable, "Azure was not reached.", "Check network and proxy, and run the same command again."
)
_UNKNOWN = Cause("", AzureError, "Azure refused.", "The message is Azure's own; run the same command to try again.")


@contextmanager
def translated() -> Iterator[None]:
    """Translate errors of azure-core, azure-identity and azure-ai-ml into ours; ours pass unchanged."""
    from azure.core import exceptions

    try:
        yield
    except exceptions.AzureError as error:
        raise translate(error) from error


def translate(error: Exception) -> AzureError:
    """Our error for one of Azure's: cause, remedy, Azure's own sentence, code and request id."""
    code, sentence = azure_code(error), azure_sentence(error)
    response = getattr(error, "response", None)
    cause = find_cause(f"{code} {type(error).__name__} {sentence}", getattr(response, "status_code", None), error)
    told = f"{cause.summary} Azure says: {sentence}" if sentence else cause.summary
    return cause.error(told, cause.remedy, azure_code=code, request_id=request_id(error))


def find_cause(text: str, status: int | None, error: Exception | None = None) -> Cause:
    """Find the row for Azure's code and sentence, else the one for the status, else `Azure refused`."""
    from azure.core import exceptions

    for cause in CAUSES:
        if re.search(cause.pattern, text, re.IGNORECASE | re.DOTALL):
            return cause
    if isinstance(error, exceptions.ServiceRequestError | exceptions.ServiceResponseError):
        return _UNREACHED
    if status is not None and status >= 500:
        return _TROUBLE
    return _BY_STATUS.get(status or 0, _UNKNOWN)


def azure_code(error: Exception) -> str:
    """Innermost code that Azure gave: ResourceNotReady, AuthorizationFailed, ..."""
    model = getattr(error, "error", None)
    code = getattr(model, "code", None) or getattr(error, "error_code", None)
    return str(getattr(code, "value", code)) if code else ""


def azure_sentence(error: Exception) -> str:
    """Azure's own sentence on one line, without azure-core's additions."""
    model = getattr(error, "error", None)
    details = [
        str(detail.message) for detail in getattr(model, "details", None) or [] if getattr(detail, "message", "")
    ]
    text = " ".join([str(getattr(model, "message", "") or getattr(error, "message", "") or error), *details])
    text = re.sub(r"\x1b\[\d+m", "", text)
    boxed = re.findall(r"\(x\) (.+)", text)  # azure-ai-ml formats its own refusals as a list for the terminal
    return " ".join(" ".join(boxed or [text]).split())[:_MAX_SENTENCE]


def request_id(error: Exception) -> str:
    """Request id, which Azure's support asks for."""
    headers: Any = getattr(getattr(error, "response", None), "headers", None) or {}
    return str(headers.get("x-ms-request-id") or headers.get("x-ms-correlation-request-id") or "")
