"""Causes of Azure's refusals as data: by its codes, by its words, by the HTTP status; each with error and remedy."""

from typing import NamedTuple

from mii_azure import errors
from mii_azure.errors import AzureError


class Cause(NamedTuple):
    """Row of the table: it fits an error with one of the codes, or a sentence in which the words are found."""

    codes: str  # of Azure, with blanks between
    words: str  # pattern, whatever the case
    error: type[AzureError]
    summary: str
    remedy: str


_QUOTA_CODES = "OutOfQuota QuotaExceeded ErrOutOfQuota"
_ROLE = "Take the role AzureML Data Scientist on the workspace, or one that allows what the message names."
_LOGS = "Read `mii-azure logs`: the last exception there is the reason."
_REATTACH = "Update the cluster's Azure ML extension, or detach and attach the compute again under the same name."
_AZ_LOGIN = "Run `az login`, or check the identity that this process runs under, and run the same command again."

# In order: the first row with one of the error's codes, from the innermost code on, else the first whose words fit.
CAUSES: tuple[Cause, ...] = (
    Cause(
        "MissingSubscriptionRegistration SubscriptionNotRegistered",
        r"not registered to use namespace|resource ?provider.{0,80}(not registered|registration)",
        errors.SubscriptionNotReady,
        "The subscription does not have this service of Azure switched on.",
        "Run `az provider register --namespace NAMESPACE --wait` for what the message names; on the "
        "subscription that takes the role Contributor.",
    ),
    Cause(
        "ReadOnlyDisabledSubscription SubscriptionDisabled",
        r"subscription .{0,60}is disabled",
        errors.SubscriptionNotReady,
        "The subscription is disabled.",
        "Have it enabled again in the portal, under Subscriptions: its credit or payment has ended.",
    ),
    Cause(
        "RequestDisallowedByPolicy PolicyViolation RequestDisallowedByAzure",
        r"disallowed by policy",
        errors.BlockedByPolicy,
        "A policy of the subscription forbids it; no role and no retry changes that.",
        "Change what the message names (region, size, network, tags), or ask the policy's owner for an exemption.",
    ),
    Cause(
        "ScopeLocked ReadOnlyLock CannotDeleteLock",
        r"scope\(s\) are locked",
        errors.BlockedByPolicy,
        "A lock on the resource, its group or subscription forbids it.",
        "`az lock list` tells which; ask its owner to remove it for the deployment.",
    ),
    Cause(
        "KeyBasedAuthenticationNotPermitted",
        r"key.based authentication is not permitted|shared key .{0,40}(disabled|not permitted)",
        errors.BlockedByPolicy,
        "The storage account allows no keys, and the workspace's datastore signs in by one.",
        "Set the workspace's system_datastores_auth_mode to identity, and take the role Storage Blob Data "
        "Contributor on the storage account.",
    ),
    Cause(
        "TasksOperationsNotAllowed",
        r"ACR Tasks requests .{0,120}not permitted",
        errors.ImageNotBuilt,
        "The container registry builds no images for this subscription.",
        "Build on a cluster: `az ml workspace update --image-build-compute CLUSTER`; or ask Azure's support "
        "to allow ACR tasks, which trial subscriptions have not.",
    ),
    Cause(
        "AADSTS700024",
        "",
        errors.NotSignedIn,
        "The workflow's assertion has ended: it signs in for minutes only.",
        "Let mii-azure sign in itself, as `mii-azure ci` writes the workflow; then undo or run the job again.",
    ),
    Cause(
        "AADSTS70021 AADSTS700213 AADSTS700211 AADSTS700212",
        "",
        errors.NotSignedIn,
        "No federated credential of the identity fits this workflow.",
        "Give it the issuer, subject and audience that `mii-azure ci` prints: the subject names repository "
        "and environment.",
    ),
    Cause(
        "AADSTS50076 AADSTS50079 AADSTS50158 AADSTS53003",
        "",
        errors.NotSignedIn,
        "The tenant asks for another proof of who you are, or its rules forbid this sign-in.",
        "Run `az login --tenant TENANT` on a machine that those rules allow.",
    ),
    Cause(
        "AADSTS7000215 AADSTS7000222",
        "",
        errors.NotSignedIn,
        "The client secret is wrong or has expired.",
        "Give the identity a new one, or better a federated credential.",
    ),
    Cause(
        "InvalidAuthenticationTokenTenant",
        "",
        errors.NotSignedIn,
        "The sign-in is of another tenant than the subscription.",
        "Run `az login --tenant TENANT` with the tenant that the message names.",
    ),
    Cause(
        "LinkedAuthorizationFailed",
        "",
        errors.AccessDenied,
        "This identity may not hand on a resource that the request names, such as an identity or a network.",
        "Take the role Managed Identity Operator, or for a network Network Contributor, on what the message names.",
    ),
    Cause(
        "ForbiddenByRbac ForbiddenByPolicy",
        "",
        errors.AccessDenied,
        "The key vault does not let this identity read.",
        "Give it the role Key Vault Secrets User on the key vault.",
    ),
    Cause(
        "ACRSecretError ACRAuthenticationChallengeFailed ACRTokenExchangeFailed TokenRefreshFailed GetAADTokenFailed",
        "",
        errors.AccessDenied,
        "The cluster got no credential for the registry or the workspace.",
        "A role assignment takes minutes to work: try again once. Then check the cluster's network and proxy. "
        "Update the cluster's Azure ML extension, or detach and attach the compute again under the same name.",
    ),
    Cause(
        "KubernetesUnaccessible InferencingClientCallFailed ScoringFeUnhealthy NamespaceNotFound",
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
        r"(sku|instance type|vm size|vmsize|requested size).{0,120}(not|unsupported)"
        r"|not .{0,40}(supported|valid).{0,20}vm size",
        errors.InstanceTypeNotOffered,
        "This instance type is not offered to this workspace.",
        "Choose another one; `mii-azure plan` ranks those that fit.",
    ),
    Cause(
        "NameConflict NameNotAvailable NameUnavailable EndpointAlreadyExists EndpointNameTaken",
        r"already an? (online )?endpoint with this name|\bname\b.{0,60}(taken|in use|already exists|not available)",
        errors.NameTaken,
        "The endpoint's name is taken: names are unique in a region, and in a cluster.",
        "Generate the bundle under another --name.",
    ),
    Cause(
        "ImagePullLoopBackOff ImagePullBackOff ErrImagePull",
        r"download (the )?user container image|failed to pull image|manifest.{0,40}unknown",
        errors.ImageNotBuilt,
        "The image was not pulled.",
        "Check that the registry has it, that the endpoint's identity has AcrPull, and the way to the registry.",
    ),
    Cause(
        "",
        r"download (the )?user model|BlobContainerNotFound|storage.initializer",
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
        r"AcrPull|container registry.{0,80}(denied|unauthori[sz]ed)"
        r"|unauthori[sz]ed.{0,80}(azurecr|container registry)",
        errors.AccessDenied,
        "The endpoint's identity may not read the container registry.",
        "Give it the role AcrPull on the workspace's registry.",
    ),
    Cause(
        "ImageBuildFailure ImageBuildFailed BuildError EnvironmentBuildFailed",
        r"image build failed|failed to build the image|building the image|ImageBuildFail",
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
        r"higher priority|lock confirmation|(another|an active) operation .{0,60}(progress|running|pending|in flight)",
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
    403: Cause("", "", errors.AccessDenied, "This identity lacks a role.", "Ask for the role that the message names."),
    404: Cause(
        "",
        "",
        errors.NotInAzure,
        "Azure does not know it.",
        "Check subscription, resource group, workspace and the endpoint's name.",
    ),
    409: Cause(
        "", "", errors.AzureUnavailable, "Another operation is under way.", "Wait and run the same command again."
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
