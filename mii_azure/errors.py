"""The errors that exist before a bundle serves; the rest of the tree is in `scoring.errors`.

    MiiAzureError
    ├── SpecError               exit 2   the request to generate is wrong
    │   ├── UnknownTask
    │   ├── InvalidName
    │   ├── UnknownInstanceType
    │   └── NotAvailable
    ├── ModelError              exit 3   the model cannot be used as asked
    │   ├── UnknownModel
    │   ├── ConfigMissing
    │   ├── WeightsMissing
    │   ├── WeightsCorrupt
    │   ├── TokenizerMissing
    │   ├── PickleRefused
    │   ├── TaskUnsupported
    │   └── DoesNotFit
    ├── BundleError             exit 3   the folder is not a bundle, not as generated, or was not written
    │   ├── NotABundle
    │   ├── BundleExists
    │   ├── BundleEdited
    │   └── NotWritten
    └── RunnerError             exit 4   a host did not start or went away
        ├── PortInUse
        ├── RunnerFailed
        ├── ModelNotServed      404  the runner serves a model of another name
        └── UnknownDeployment

Exit codes: 0 done · 1 findings, or a verdict that says no · 2 usage or spec · 3 model or bundle · 4 host.
"""

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


class PickleRefused(ModelError):
    code = "pickle_refused"


class TaskUnsupported(ModelError):
    code = "task_unsupported"


class DoesNotFit(ModelError):
    code = "does_not_fit"


class BundleError(MiiAzureError):
    code = "bundle_error"
    exit_code = 3


class NotABundle(BundleError):
    code = "not_a_bundle"


class BundleExists(BundleError):
    code = "bundle_exists"


class BundleEdited(BundleError):
    code = "bundle_edited"


class NotWritten(BundleError):
    code = "not_written"


class RunnerError(MiiAzureError):
    code = "runner_error"
    http_status = 503
    grpc_status = "UNAVAILABLE"
    exit_code = 4


class PortInUse(RunnerError):
    code = "port_in_use"


class RunnerFailed(RunnerError):
    code = "runner_failed"


class ModelNotServed(RunnerError):
    code = "model_not_served"
    http_status = 404
    grpc_status = "NOT_FOUND"


class UnknownDeployment(RunnerError):
    code = "unknown_deployment"
