"""Errors that occur before a bundle serves; the rest of the tree is in `scoring.errors`.

    MiiAzureError
    ├── SpecError               exit 2   the request to generate is wrong
    │   ├── UnknownTask
    │   ├── InvalidName
    │   ├── UnknownInstanceType
    │   ├── HandlerUnusable          --handler names a file without hooks of the declared signatures
    │   └── NotAvailable
    ├── ModelError              exit 3   the model cannot be used as asked
    │   ├── UnknownModel
    │   ├── ConfigMissing
    │   ├── WeightsMissing
    │   ├── WeightsCorrupt
    │   ├── TokenizerMissing
    │   ├── ModelInconsistent        config, weights and transformers do not agree
    │   ├── AdapterUnusable          a LoRA adapter of another kind, or for another base
    │   ├── DraftUnusable            a draft model with another vocabulary, or of another kind
    │   ├── PickleRefused
    │   ├── RemoteCodeRefused
    │   ├── OutsideFolder            a name or a link that leads out of the model's folder
    │   ├── PackagedModelError       a small model out of a package cannot be had
    │   ├── TaskUnsupported
    │   └── DoesNotFit
    ├── BundleError             exit 3   the folder is not a bundle, not as generated, or was not written
    │   ├── NotABundle
    │   ├── BundleExists
    │   ├── BundleEdited
    │   ├── SecretFound
    │   └── NotWritten
    ├── FileUnusable            exit 3   the machine refuses a file: its name, its permissions, its disk
    ├── RunnerError             exit 4   a host did not start or went away
    │   ├── PortInUse
    │   ├── RunnerFailed
    │   ├── RayMissing               --engine ray without Ray Serve
    │   ├── ClusterTooSmall          no node of the Ray cluster can hold a replica
    │   ├── ReplicaLost         503  a replica ended with a stream that had begun, or over the request itself
    │   ├── ModelNotServed      404  the runner serves a model of another name
    │   ├── NoSuchRoute         404  no such path
    │   ├── WrongMethod         405  a path, but not by that method
    │   ├── UnsupportedEncoding 415  a body compressed by other than gzip
    │   ├── RequestStalled      408  half a request came, and no more of it, or too slowly
    │   ├── HeadTooLarge        431  a request's line and headers are more than any client's
    │   ├── Unauthenticated     401  the runner wants a key
    │   └── UnknownDeployment
    └── AzureError              exit 5   Azure said no; carries Azure's own code and the request id
        ├── NotSignedIn                  no credential, or one that has expired
        ├── SubscriptionNotReady         disabled, or without a service that is needed
        ├── BlockedByPolicy              by a policy, a lock or a forbidden kind of key: no role helps
        ├── AccessDenied                 a role is missing
        ├── NotInAzure                   workspace, endpoint or slot does not exist
        ├── NameTaken
        ├── QuotaExceeded                three verdicts told apart: quota,
        ├── InstanceTypeNotOffered       not in this region or workspace,
        ├── NoCapacity                   and offered, allowed, but none free now
        ├── DiskFull                     of an instance
        ├── ImageNotBuilt
        ├── ContainerNotReady            the probes gave up
        ├── UploadFailed
        ├── AzureUnavailable             too busy, or not reached
        ├── RolloutFailed                a gate failed; the traffic went back
        └── Interrupted         exit 130 stopped by Ctrl-C, with what exists

Exit codes: 0 done · 1 findings, or a verdict that says no · 2 usage or spec · 3 model or bundle · 4 host · 5 Azure.
"""

from typing import Any

from local_runner.errors import BundleEdited as BundleEdited
from local_runner.errors import BundleError as BundleError
from local_runner.errors import ClusterTooSmall as ClusterTooSmall
from local_runner.errors import HeadTooLarge as HeadTooLarge
from local_runner.errors import ModelNotServed as ModelNotServed
from local_runner.errors import NoSuchRoute as NoSuchRoute
from local_runner.errors import NotABundle as NotABundle
from local_runner.errors import PortInUse as PortInUse
from local_runner.errors import RayMissing as RayMissing
from local_runner.errors import ReplicaLost as ReplicaLost
from local_runner.errors import RequestStalled as RequestStalled
from local_runner.errors import RunnerError as RunnerError
from local_runner.errors import RunnerFailed as RunnerFailed
from local_runner.errors import Unauthenticated as Unauthenticated
from local_runner.errors import UnknownDeployment as UnknownDeployment
from local_runner.errors import UnsupportedEncoding as UnsupportedEncoding
from local_runner.errors import WrongMethod as WrongMethod
from scoring.errors import MiiAzureError as MiiAzureError


class SpecError(MiiAzureError):
    code = "invalid_spec"
    http_status = 400
    grpc_status = "INVALID_ARGUMENT"
    exit_code = 2


class UnknownTask(SpecError):
    code = "unknown_task"


class InvalidName(SpecError):
    code = "invalid_name"


class UnknownInstanceType(SpecError):
    code = "unknown_instance_type"


class HandlerUnusable(SpecError):
    code = "handler_unusable"


class NotAvailable(SpecError):
    code = "not_available"


class ModelError(MiiAzureError):
    code = "model_error"
    exit_code = 3


class UnknownModel(ModelError):
    code = "unknown_model"


class ConfigMissing(ModelError):
    code = "config_missing"


class WeightsMissing(ModelError):
    code = "weights_missing"


class WeightsCorrupt(ModelError):
    code = "weights_corrupt"


class TokenizerMissing(ModelError):
    code = "tokenizer_missing"


class ModelInconsistent(ModelError):
    code = "model_inconsistent"


class AdapterUnusable(ModelError):
    code = "adapter_unusable"


class DraftUnusable(ModelError):
    code = "draft_unusable"


class PickleRefused(ModelError):
    code = "pickle_refused"


class RemoteCodeRefused(ModelError):
    code = "remote_code_refused"


class OutsideFolder(ModelError):
    code = "outside_folder"


class TaskUnsupported(ModelError):
    code = "task_unsupported"


class PackagedModelError(ModelError):
    code = "packaged_model"


class DoesNotFit(ModelError):
    code = "does_not_fit"


class BundleExists(BundleError):
    code = "bundle_exists"


class SecretFound(BundleError):
    code = "secret_found"


class NotWritten(BundleError):
    code = "not_written"


class FileUnusable(MiiAzureError):
    code = "file_unusable"
    exit_code = 3


class AzureError(MiiAzureError):
    """Error from Azure: `azure_code` is its own code; `request_id` is the id that its support asks for."""

    code = "azure_error"
    http_status = 502
    grpc_status = "UNAVAILABLE"
    exit_code = 5

    def __init__(
        self, message: str, hint: str = "", where: str = "", *, azure_code: str = "", request_id: str = ""
    ) -> None:
        super().__init__(message, hint, where)
        self.azure_code = azure_code
        self.request_id = request_id

    def to_dict(self) -> dict[str, Any]:
        body = super().to_dict()
        extra = {"azure_code": self.azure_code, "request_id": self.request_id}
        body["error"] |= {key: value for key, value in extra.items() if value}
        return body

    def __str__(self) -> str:
        told = super().__str__()
        return f"{told} Azure's request id is {self.request_id}." if self.request_id else told


class NotSignedIn(AzureError):
    code = "not_signed_in"


class AccessDenied(AzureError):
    code = "access_denied"


class SubscriptionNotReady(AzureError):
    code = "subscription_not_ready"


class BlockedByPolicy(AzureError):
    code = "blocked_by_policy"


class DiskFull(AzureError):
    code = "disk_full"


class NotInAzure(AzureError):
    code = "not_in_azure"


class NameTaken(AzureError):
    code = "name_taken"


class QuotaExceeded(AzureError):
    code = "quota_exceeded"


class InstanceTypeNotOffered(AzureError):
    code = "instance_type_not_offered"


class NoCapacity(AzureError):
    code = "no_capacity"


class ImageNotBuilt(AzureError):
    code = "image_not_built"


class ContainerNotReady(AzureError):
    code = "container_not_ready"


class UploadFailed(AzureError):
    code = "upload_failed"


class AzureUnavailable(AzureError):
    code = "azure_unavailable"


class RolloutFailed(AzureError):
    code = "rollout_failed"


class Interrupted(AzureError):
    code = "interrupted"
    exit_code = 130
