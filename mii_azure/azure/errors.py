"""Translation of Azure's errors into ours, by the table in `causes`."""

import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mii_azure.azure.cause import Cause
from mii_azure.azure.causes import BY_STATUS, CAUSES, TROUBLE, UNKNOWN, UNREACHED, VAGUE
from mii_azure.errors import AzureError, AzureUnavailable, NotSignedIn

_MAX_SENTENCE = 1000


@contextmanager
def translated() -> Iterator[None]:
    """Translate errors of azure-core, azure-identity and azure-ai-ml into ours; ours pass unchanged.

    An answer that azure-ai-ml stumbles over, e.g. a deployment without scaleSettings, becomes AzureUnavailable.
    """
    from azure.core import exceptions

    try:
        yield
    except exceptions.AzureError as error:
        raise translate(error) from error
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        if not _raised_in_client(error):
            raise
        raise AzureUnavailable(
            f"azure-ai-ml cannot read what Azure answered: {type(error).__name__}: {error}.",
            "Look at it with `az ml` or in the studio; another version of azure-ai-ml may read it.",
        ) from error


def _raised_in_client(error: Exception) -> bool:
    """Return True if the innermost frame is one of azure-ai-ml's."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and "/azure/ai/ml/" in frames[-1].filename.replace("\\", "/")


def translate(error: Exception) -> AzureError:
    """Our error for one of Azure's: cause, remedy, Azure's own sentence, code and request id."""
    codes, sentence = azure_codes(error), azure_sentence(error)
    response = getattr(error, "response", None)
    cause = find_cause(codes, sentence, getattr(response, "status_code", None), error)
    quoted = sentence and not (cause.error is NotSignedIn and _CHAIN.search(sentence))
    told = f"{cause.summary} Azure says: {sentence}" if quoted else cause.summary
    return cause.error(told, cause.remedy, azure_code=codes[0] if codes else "", request_id=request_id(error))


def find_cause(codes: list[str], sentence: str, status: int | None = None, error: Exception | None = None) -> Cause:
    """Find the row for Azure's codes, else for its words, else for a vague code or the status."""
    from azure.core import exceptions

    for code in codes:
        if found := next((cause for cause in CAUSES if code in cause.codes.split()), None):
            return found
    text = f"{' '.join(codes)} {type(error).__name__ if error else ''} {sentence}"
    for cause in CAUSES:
        if cause.words and re.search(cause.words, text, re.IGNORECASE | re.DOTALL):
            return cause
    if isinstance(error, exceptions.ServiceRequestError | exceptions.ServiceResponseError):
        return UNREACHED
    vague = next((cause for code in codes for cause in VAGUE if code in cause.codes.split()), None)
    if vague:
        return vague
    if status is not None and status >= 500:
        return TROUBLE
    return BY_STATUS.get(status or 0, UNKNOWN)


def azure_codes(error: Exception) -> list[str]:
    """Codes that Azure gave, the innermost first: those of inner errors and details, then the outer one's.

    Some services put an error as text into another one's message, so codes are looked for there too.
    """
    model = getattr(error, "error", None)
    outer = getattr(model, "code", None) or getattr(error, "error_code", None)
    text = str(getattr(model, "message", "") or getattr(error, "message", "") or error)
    named = [next(filter(None, groups)) for groups in _IN_TEXT.findall(text)]
    found = [*_inner_codes(model), *reversed(named), *([getattr(outer, "value", outer)] if outer else [])]
    return list(dict.fromkeys(str(code) for code in found if code))


# As in `(OutOfQuota) ...`, `Code: OutOfQuota`, `ErrorCode:X`, `"code":"X"`, `ResourceNotReady: ...`, `AADSTS700024`.
_IN_TEXT = re.compile(
    r"\(([A-Z][A-Za-z]{4,60})\)|\b[Cc]ode\\?[\"']?\s*:\s*\\?[\"']?([A-Z][A-Za-z]{4,60})|ErrorCode:\s*([A-Za-z]{5,60})"
    r"|\b([A-Z][a-z]+(?:[A-Z][a-z]+){1,8}):\s|\b(AADSTS\d+)"
)
_CHAIN = re.compile(r"failed to retrieve a token|authentication unavailable|run 'az login'", re.IGNORECASE)


def _inner_codes(model: Any) -> list[Any]:
    """Codes below an error of OData's form, the deepest first."""
    found: list[Any] = []
    inner = getattr(model, "innererror", None) or {}
    while isinstance(inner, dict) and inner:
        found.insert(0, inner.get("code"))
        inner = inner.get("innererror") or inner.get("innerError") or {}
    for detail in getattr(model, "details", None) or []:
        found = [*_inner_codes(detail), getattr(detail, "code", None), *found]
    return found


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
