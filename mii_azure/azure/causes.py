"""Causes of Azure's refusals as data: by its codes, by its words, by the HTTP status; each with error and remedy."""

from mii_azure import errors
from mii_azure.azure.account_causes import ACCOUNT_CAUSES
from mii_azure.azure.cause import Cause
from mii_azure.errors import AzureError

_ROLE = "Take the role AzureML Data Scientist on the workspace, or one that allows what the message names."
_LOGS = "Read `mii-azure logs`: the last exception there is the reason."
_REATTACH = "Update the cluster's Azure ML extension, or detach and attach the compute again under the same name."
_AZ_LOGIN = "Run `az login`, or check the identity that this process runs under, and run the same command again."

# In order: the first row with one of the error's codes, from the innermost code on, else the first whose words fit.
CAUSES: tuple[Cause, ...] = (
    *ACCOUNT_CAUSES,
    Cause(
        "DeploymentIdentityError ACRTokenExchangeForbidden ACRSecretError ACRAuthenticationChallengeFailed "
        "ACRTokenExchangeFailed TokenRefreshFailed GetAADTokenFailed",
        "",
        errors.AccessDenied,
        "The cluster got no credential for the registry or the workspace.",
        "A role assignment takes minutes to work: try again once. Then check the cluster's network and proxy. "
        "Update the cluster's Azure ML extension, or detach and attach the compute again under the same name.",
    ),
    Cause(
        "KubernetesUnaccessible InferencingClientCallFailed ScoringFeUnhealthy ValidateScoringFailed NamespaceNotFound",
        "",
        errors.AzureUnavailable,
        "The cluster, or Azure ML's part in it, does not answer.",
        _REATTACH,
    ),
    Cause(
        "OperationCanceled OperationCancelled",
        "",
        errors.AzureUnavailable,
        "Azure ended the operation for another one.",
        "Wait a minute, and run the same command again.",
    ),
    Cause(
        "ModelNotFound EnvironmentNotFound",
        r"\b(model|environment)( container| version)?( with name)?:? [\w:.'-]{1,99} (was |is )?not (found|registered)"
        r"|no builds exist for environment",
        errors.NotInAzure,
        "Azure does not know the model or the environment.",
        "Check name and version: `az ml model list`, `az ml environment list`; `mii-azure deploy` makes its own.",
    ),
    Cause(
        "NoMatchingArtifactsFoundFromJob",
        "",
        errors.NotInAzure,
        "The job has no output at the model's path.",
        "Look at its outputs in the studio, and generate the bundle with the path of the one that is the model.",
    ),
    Cause(
        "MissingDriverProgram",
        "",
        errors.AzureError,
        "The deployment names no scoring script, and neither model nor environment brings one.",
        "Write code_configuration, with code and scoring_script.",
    ),
    Cause(
        "InvalidDeploymentSpec",
        "",
        errors.AzureError,
        "Azure does not take the numbers of the deployment.",
        "Check instance_count and, with autoscale, the fewest and the most instances.",
    ),
    Cause(
        "",
        r"'?image'? must not be empty",
        errors.AzureError,
        "The deployment has no image: neither an environment nor the model brings one.",
        "Write environment: azureml:NAME:VERSION, one that the workspace has.",
    ),
    Cause(
        "",
        r"\b(resource|cpu|memory|gpu)s? requests?\b.{0,60}(greater|higher|more) than .{0,20}limit"
        r"|requests? must be less than or equal to limit",
        errors.AzureError,
        "The deployment asks for more of the cluster than its own limits.",
        "Lower resources.requests in deployment.yml, or raise its limits; `az ml compute show` tells the cluster's.",
    ),
    Cause(
        "",
        r"\b(deployment|end ?point)\b.{0,80} in '?failed'? (provisioning )?state(?!.{0,20}\b(reason|because|due to)\b)",
        errors.AzureError,
        "What stands there has failed, and Azure takes nothing over it.",
        "Delete it, e.g. `mii-azure delete BUNDLE --slot SLOT`, and run the same command again.",
    ),
    Cause(
        "",
        r"taking longer than .{0,20}normal|OperationTimedOut|did not (complete|finish) (with)?in",
        errors.AzureUnavailable,
        "Azure did not finish in its time.",
        "Look at `mii-azure status`: it may still come up. If it does not, read `mii-azure logs`.",
    ),
    Cause(
        "PreemptionError",
        r"pre-?empted",
        errors.NoCapacity,
        "Azure took low-priority nodes back.",
        "Run the same command again, or use a cluster of dedicated nodes.",
    ),
    Cause(
        "",
        r"ValidateInstanceTypeAsync",
        errors.InstanceTypeNotOffered,
        "The cluster does not know the instance type.",
        "`kubectl get instancetypes` lists them; write one of those names as instance_type, or none for the default.",
    ),
    Cause(
        "VaultAlreadyExists StorageAccountAlreadyTaken",
        r"\b(vault|storage account)\b.{0,80}(same name|already (exists|in use|taken))|soft.deleted|in deleted state",
        errors.NameTaken,
        "Another resource has the name, or was deleted and is kept for recovery; the endpoint's name is not meant.",
        "Recover or purge the deleted one, or give the new one another name.",
    ),
    Cause(
        "ResourceGroupNotFound WorkspaceNotFound ParentResourceNotFound EndpointNotFound DatastoreNotFound "
        "ContainerNotFound",
        "",
        errors.NotInAzure,
        "Azure does not know it.",
        "Check subscription, resource group, workspace and the endpoint's name.",
    ),
    Cause(
        "TooManyRequests Throttled SubscriptionRequestsThrottled OperationThrottled",
        "",
        errors.AzureUnavailable,
        "Azure takes no more requests now.",
        "Wait a minute and run it again.",
    ),
    Cause(
        "",
        r"liveness probe|readiness probe",
        errors.ContainerNotReady,
        "The container did not answer its probes.",
        "Read `mii-azure logs`; if the model was still loading, raise the probes' initial_delay or failure_threshold.",
    ),
    Cause(
        "",
        r"no space left|disk (space|quota)|(out of|not enough|insufficient) disk|ephemeral.storage",
        errors.DiskFull,
        "The instance's disk does not hold image and model.",
        "Choose an instance type with a larger local disk; more cores of quota do not help.",
    ),
    Cause(
        "PodUnschedulable",
        r"unschedulable|nodes are available|too many pods|insufficient (cpu|memory|nvidia)",
        errors.NoCapacity,
        "No node of the cluster has room for the pod.",
        "Lower `resources` of deployment.yml, free or add nodes, or mend the instance type's node selector.",
    ),
    Cause(
        "PodOutOfMemory OutOfMemory OOMKilled",
        r"out of ?memory|OOMKilled|memory quota|not enough memory",
        errors.ContainerNotReady,
        "The container ran out of memory.",
        "Choose an instance type with more memory; `mii-azure plan` says which fit.",
    ),
    Cause(
        "RoleAssignmentLimitExceeded",
        r"role assignment.{0,60}limit|number of role assignments",
        errors.QuotaExceeded,
        "The subscription holds no more role assignments, and an endpoint's own identity needs some.",
        "Delete unused ones under Access control, or use --identities with one that has its roles.",
    ),
    Cause(
        "",
        r"(maximum|limit|quota|number)\b.{0,60}\b(end ?points|deployments)\b"
        r"|\b(end ?points?|deployments?)\b.{0,40}(limit|quota)",
        errors.QuotaExceeded,
        "There are as many endpoints, or deployments in this endpoint, as Azure allows.",
        "Delete unused ones, or ask for a higher limit of endpoints; more cores do not help.",
    ),
    Cause(
        "",
        r"(not enough|insufficient|exceed\w*|out of|enough)\b.{0,80}\b(quota|cores|vcpus?)\b"
        r"|\b(cores|vcpus?)\b.{0,40}\bquota|quota\b.{0,60}\b(cores|vcpus?|vm size)|additional (needed|required): ?\d",
        errors.QuotaExceeded,
        "The subscription's quota of cores does not reach.",
        "Ask for more cores of this family, or choose a smaller type; `mii-azure plan` says how many it takes.",
    ),
    Cause(
        "OutOfCapacity ZonalAllocationFailed AllocationFailed OverconstrainedAllocationRequest "
        "OverconstrainedZonalAllocationRequest",
        r"insufficient capacity|(no|lack of|not enough|sufficient) .{0,40}capacity"
        r"|capacity .{0,40}(not available|in this region)",
        errors.NoCapacity,
        "Azure has none of these instances free in this region now.",
        "Run the same command later, or choose another instance type or region; more quota does not help.",
    ),
    Cause(
        "SkuNotAvailable InvalidVmSize VmSizeNotSupported VMSizeNotSupported UnsupportedVmSize SkuNotSupported",
        r"(sku|instance type|vm size|vmsize|requested size).{0,120}"
        r"(not .{0,20}(available|supported|offered|allowed|valid)|unsupported)"
        r"|not .{0,40}(supported|valid).{0,20}vm size",
        errors.InstanceTypeNotOffered,
        "This instance type is not offered to this workspace.",
        "Choose another one; `mii-azure plan` ranks those that fit.",
    ),
    Cause(
        "NameConflict NameNotAvailable NameUnavailable EndpointAlreadyExists EndpointNameTaken",
        r"already an? .{0,10}endpoint with this name"
        r"|\A(?!.*\bdeployment\b).*\bend ?point( named| called)?( ['\"]?[\w-]+['\"]?)?"
        r" (is )?already (exists|taken|in use)"
        r"|\bend ?point('s)? name\b.{0,60}(taken|in use|already exists|not available)",
        errors.NameTaken,
        "The endpoint's name is taken: names are unique in a region, and in a cluster.",
        "Generate the bundle under another --name.",
    ),
    Cause(
        "ImagePullLoopBackOff ImagePullBackOff ErrImagePull InaccessibleImage",
        r"download (the )?user container image|failed to pull image|image pull failed|manifest.{0,40}unknown",
        errors.ImageNotBuilt,
        "The image was not pulled.",
        "Check that the registry has it, that the endpoint's identity has AcrPull, and the way to the registry.",
    ),
    Cause(
        "",
        r"download (the )?user model|model download failed|BlobContainerNotFound|storage.initializer",
        errors.ContainerNotReady,
        "The model's files were not fetched.",
        "Read `mii-azure logs --container storage-initializer`; the endpoint's identity needs Storage Blob "
        "Data Reader.",
    ),
    Cause(
        "ForbiddenByFirewall ForbiddenByConnection",
        r"client with IP .{0,60}(not allowed|denied)|firewall" r"|not allowed access to this (registry|resource)",
        errors.AccessDenied,
        "The resource's firewall does not let this network in.",
        "Run the command inside the virtual network, or allow this address at what the message names.",
    ),
    Cause(
        "",
        r"container registry authorization failure",
        errors.AccessDenied,
        "The workspace's keys of its container registry are out of date, or its network is.",
        "Run `az ml workspace sync-keys --name WORKSPACE`, and then the same command again.",
    ),
    Cause(
        "",
        r"communicate with the workspace's container registry",
        errors.ImageNotBuilt,
        "The container registry is private, and builds no image from outside its network.",
        "Build on a cluster in that network: `az ml workspace update --image-build-compute CLUSTER`.",
    ),
    Cause(
        "",
        r"AcrPull|container registry.{0,80}(denied|unauthori[sz]ed)"
        r"|unauthori[sz]ed.{0,80}(azurecr|container registry)",
        errors.AccessDenied,
        "The endpoint's identity may not read the container registry.",
        "Give it the role AcrPull on the workspace's registry.",
    ),
    Cause(
        "",
        r"image ?build ?fail|failed to build the image|building the image|BuildError|EnvironmentBuildFailed",
        errors.ImageNotBuilt,
        "The environment's image was not built.",
        "Read the build log in the workspace's studio under Environments; a private network needs a build compute.",
    ),
    Cause(
        "SubscriptionNotFound InvalidSubscriptionId",
        r"subscription .{0,60}(does not exist|could not be found|doesn't exist)",
        errors.NotInAzure,
        "Azure does not know this subscription, or this sign-in does not see it.",
        "Check --subscription, and the tenant of the sign-in: `az login --tenant TENANT`.",
    ),
    Cause(
        "AuthorizationFailed",
        r"does not have authorization|not authorized to perform|does not have permission",
        errors.AccessDenied,
        "This identity lacks a role.",
        _ROLE,
    ),
    Cause(
        "",
        r"failed to retrieve a token|Credential(Unavailable| authentication unavailable)|run 'az login'",
        errors.NotSignedIn,
        "Nobody is signed in to Azure here.",
        _AZ_LOGIN,
    ),
    Cause(
        "ExpiredAuthenticationToken InvalidAuthenticationToken AuthenticationFailedInvalidHeader",
        r"AADSTS\d+",
        errors.NotSignedIn,
        "Azure does not accept the sign-in.",
        _AZ_LOGIN,
    ),
    Cause(
        "AuthorizationPermissionMismatch AuthorizationFailure NoAuthenticationInformation",
        r"SasToken|Server failed to authenticate",
        errors.AccessDenied,
        "The workspace's storage refused the upload.",
        "Take the role Storage Blob Data Contributor on the storage account, or check its firewall.",
    ),
    Cause(
        "",
        r"higher priority|lock confirmation|parallel operations"
        r"|in '?(updating|creating|deleting)'? (provisioning )?state"
        r"|(another|an active) operation .{0,60}(progress|running|pending|in flight)",
        errors.AzureUnavailable,
        "Another operation is under way.",
        "Wait and run the same command again.",
    ),
    Cause(
        "UserScriptInitFailed UserScriptImportError UserScriptFunctionNotFound DeploymentCrashLoopBackOff "
        "KubernetesCrashLoopBackOff ContainerCrash CrashLoopBackOff",
        r"user container has (crashed|terminated)|crash(ed|loop)|container .{0,40}exited",
        errors.ContainerNotReady,
        "The container started and ended again.",
        _LOGS,
    ),
)
# Codes that say little; where no words fit.
VAGUE: tuple[Cause, ...] = (
    Cause(
        "OutOfQuota QuotaExceeded ErrOutOfQuota",
        "",
        errors.QuotaExceeded,
        "A quota does not reach; which one, Azure's sentence says.",
        "It may be cores, endpoints, role assignments, disk or memory: raise that one, or ask for less of it.",
    ),
    Cause("Forbidden", "", errors.AccessDenied, "This identity lacks a role.", _ROLE),
    Cause("ResourceNotReady", "", errors.ContainerNotReady, "The deployment did not become ready.", _LOGS),
    Cause(
        "InternalServerError InternalError",
        "",
        errors.AzureUnavailable,
        "Azure failed, by a fault of its own.",
        "Run the same command again; if it stays so, give Azure's support the request id.",
    ),
)

BY_STATUS: dict[int, Cause] = {
    401: Cause("", "", errors.NotSignedIn, "Azure does not accept the sign-in.", _AZ_LOGIN),
    403: Cause(
        "",
        "",
        errors.AccessDenied,
        "Azure refuses this identity, or this network.",
        "Ask for the role that the message names; if it names none, a firewall or a private link may stand between.",
    ),
    404: Cause(
        "",
        "",
        errors.NotInAzure,
        "Azure does not know it.",
        "Check subscription, resource group, workspace and the endpoint's name.",
    ),
    409: Cause(
        "",
        "",
        errors.AzureUnavailable,
        "Another operation, or what is there already, stands in the way.",
        "Wait a minute and run the same command again; if it stays so, rename or remove what the message names.",
    ),
    429: Cause("", "", errors.AzureUnavailable, "Azure takes no more requests now.", "Wait a minute and run it again."),
}
TROUBLE = Cause("", "", errors.AzureUnavailable, "Azure failed to answer.", "Run the same command again.")
UNREACHED = Cause(
    "",
    "",
    errors.AzureUnavailable,
    "Azure was not reached.",
    "Check network and proxy, and run the same command again.",
)
UNKNOWN = Cause(
    "",
    "",
    AzureError,
    "Azure refused, for a reason that is not known here.",
    "The message is Azure's own; its support asks for the request id.",
)
