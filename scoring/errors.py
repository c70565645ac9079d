"""Tree of every error a user can meet; `mii_azure.errors` adds the branches that exist before a bundle does.

    MiiAzureError
    ├── RequestError            400  what was sent cannot be answered
    │   ├── InvalidJson
    │   ├── InvalidInput
    │   ├── InvalidParameter
    │   ├── AdapterNotServed    404  an adapter of a name that is not served beside the model
    │   ├── AdapterRefused           one that cannot be loaded while the model serves
    │   ├── PromptTooLong
    │   │   └── TextTooLong     413  so long that its tokens are not even counted
    │   └── PayloadTooLarge     413
    ├── Overloaded              429  with Retry-After
    ├── NotReady                503
    │   ├── RankLost                 a process that held a part of the model is gone
    │   └── DeviceFull               no memory for a request of a size that has been served before
    ├── RequestTimeout          504
    ├── InternalError           500  with an id that the log repeats
    ├── HandlerFailed           500  the deployment's own handler.py raised, or gave what it may not; with such an id
    └── LoadError               503  the model could not be loaded; the process exits with 3
        ├── ModelNotFound
        ├── WeightsUnreadable
        ├── HeadMissing
        ├── OutOfMemory              the weights do not fit the device
        └── PassNotServed

Each class carries `code` (stable, for programs), `http_status`, `grpc_status` and `exit_code`; each error carries a
sentence, a remedy and, for requests, the place in the payload.
"""

from typing import Any, ClassVar


class MiiAzureError(Exception):
    """Base of every error that is part of the interface."""

    code: ClassVar[str] = "error"
    http_status: ClassVar[int] = 500
    grpc_status: ClassVar[str] = "INTERNAL"
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, hint: str = "", where: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.where = where

    def to_dict(self) -> dict[str, Any]:
        """The JSON body that every host answers with: `{"error": {code, message, hint?, where?}}`."""
        fields = {"code": self.code, "message": self.message, "hint": self.hint, "where": self.where}
        return {"error": {key: value for key, value in fields.items() if value}}

    @property
    def headers(self) -> dict[str, str]:
        """Extra HTTP headers of the reply."""
        return {}

    def __str__(self) -> str:
        place = f" (at {self.where})" if self.where else ""
        remedy = f" {self.hint}" if self.hint else ""
        return f"{self.message}{place}{remedy}"


class RequestError(MiiAzureError):
    code = "bad_request"
    http_status = 400
    grpc_status = "INVALID_ARGUMENT"


class InvalidJson(RequestError):
    code = "invalid_json"


class InvalidInput(RequestError):
    code = "invalid_input"


class InvalidParameter(RequestError):
    code = "invalid_parameter"


class AdapterNotServed(RequestError):
    code = "adapter_not_served"
    http_status = 404
    grpc_status = "NOT_FOUND"


class AdapterRefused(RequestError):
    code = "adapter_refused"


class PromptTooLong(RequestError):
    code = "prompt_too_long"


class TextTooLong(PromptTooLong):
    code = "text_too_long"
    http_status = 413
    grpc_status = "RESOURCE_EXHAUSTED"


class PayloadTooLarge(RequestError):
    code = "payload_too_large"
    http_status = 413
    grpc_status = "RESOURCE_EXHAUSTED"


class Overloaded(MiiAzureError):
    code = "overloaded"
    http_status = 429
    grpc_status = "RESOURCE_EXHAUSTED"

    def __init__(self, message: str, hint: str = "", retry_after_s: int = 1) -> None:
        super().__init__(message, hint)
        self.retry_after_s = retry_after_s

    @property
    def headers(self) -> dict[str, str]:
        return {"Retry-After": str(self.retry_after_s)}


class NotReady(MiiAzureError):
    code = "not_ready"
    http_status = 503
    grpc_status = "UNAVAILABLE"

    @property
    def headers(self) -> dict[str, str]:
        return {"Retry-After": "1"}


class RankLost(NotReady):
    code = "rank_lost"


class DeviceFull(NotReady):
    code = "device_full"


class RequestTimeout(MiiAzureError):
    code = "request_timeout"
    http_status = 504
    grpc_status = "DEADLINE_EXCEEDED"


class InternalError(MiiAzureError):
    code = "internal"


class HandlerFailed(MiiAzureError):
    code = "handler_failed"


class LoadError(MiiAzureError):
    code = "load_failed"
    http_status = 503
    grpc_status = "UNAVAILABLE"
    exit_code = 3


class ModelNotFound(LoadError):
    code = "model_not_found"


class WeightsUnreadable(LoadError):
    code = "weights_unreadable"


class HeadMissing(LoadError):
    code = "head_missing"


class OutOfMemory(LoadError):
    code = "out_of_memory"


class PassNotServed(LoadError):
    code = "pass_not_served"
