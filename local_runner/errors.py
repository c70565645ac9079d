"""Errors of a folder that is no valid bundle, and of a host that did not start, went away, or refuses.

Two branches of the tree in `mii_azure.errors`. Kept here because a bundle with `--server http` carries this package
without `mii_azure`.
"""

from collections.abc import Sequence

from scoring.errors import MiiAzureError


class BundleError(MiiAzureError):
    code = "bundle_error"
    exit_code = 3


class NotABundle(BundleError):
    code = "not_a_bundle"


class BundleEdited(BundleError):
    code = "bundle_edited"


class RunnerError(MiiAzureError):
    code = "runner_error"
    http_status = 503
    grpc_status = "UNAVAILABLE"
    exit_code = 4


class PortInUse(RunnerError):
    code = "port_in_use"


class RunnerFailed(RunnerError):
    code = "runner_failed"


class RayMissing(RunnerError):
    code = "ray_missing"


class ClusterTooSmall(RunnerError):
    code = "cluster_too_small"


class ReplicaLost(RunnerError):
    code = "replica_lost"


class ClientGone(RunnerError):
    code = "client_gone"
    http_status = 499
    grpc_status = "CANCELLED"


class ModelNotServed(RunnerError):
    code = "model_not_served"
    http_status = 404
    grpc_status = "NOT_FOUND"


class DeploymentNotFound(ModelNotServed):
    code = "DeploymentNotFound"


class NoSuchRoute(RunnerError):
    code = "not_found"
    http_status = 404
    grpc_status = "NOT_FOUND"


class WrongMethod(RunnerError):
    code = "wrong_method"
    http_status = 405
    grpc_status = "UNIMPLEMENTED"


class UnsupportedEncoding(RunnerError):
    code = "unsupported_encoding"
    http_status = 415
    grpc_status = "INVALID_ARGUMENT"


class RequestStalled(RunnerError):
    code = "request_stalled"
    http_status = 408
    grpc_status = "CANCELLED"


class HeadTooLarge(RunnerError):
    code = "head_too_large"
    http_status = 431
    grpc_status = "RESOURCE_EXHAUSTED"


class Unauthenticated(RunnerError):
    code = "unauthenticated"
    http_status = 401
    grpc_status = "UNAUTHENTICATED"


class UnknownDeployment(RunnerError):
    code = "unknown_deployment"


def served_as(names: Sequence[str]) -> str:
    """Sentence that tells the names of the model that a runner serves."""
    return f"This runner serves {' or '.join(map(repr, names))}."
