"""Causes that lie with the account: its subscription and policies, its sign-in, its networks, what it may read."""

from mii_azure import errors
from mii_azure.azure.cause import Cause
from mii_azure.platform.secret_references import CONNECTION_ROLE

#: In order, before those of a deployment.
ACCOUNT_CAUSES: tuple[Cause, ...] = (
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
        "",
        r"template function",
        errors.BlockedByPolicy,
        "A policy of the subscription is itself at fault.",
        "Ask its owner to correct the policy, or to remove the assignment that the message names.",
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
        "AADSTS70021 AADSTS700213 AADSTS700211 AADSTS700212 AADSTS70025",
        "",
        errors.NotSignedIn,
        "No federated credential of the identity fits this workflow.",
        "Give it the issuer, subject and audience that `mii-azure ci` prints: the subject names repository "
        "and environment.",
    ),
    Cause(
        "AADSTS7002381",
        "",
        errors.NotSignedIn,
        "The tenant takes only workflows whose assertion holds a claim that this one does not.",
        "Ask who runs the tenant for the claim that the message names; a run from the organisation's own repository "
        "may have it.",
    ),
    Cause(
        "AADSTS650052 AADSTS500011",
        "",
        errors.NotSignedIn,
        "The tenant does not know Azure Machine Learning as a service.",
        "Have an administrator run `az ad sp create --id ID`, once, with the id that the message names.",
    ),
    Cause(
        "AADSTS700016 AADSTS90002",
        "",
        errors.NotSignedIn,
        "The tenant does not know this client, or is none itself.",
        "Check AZURE_CLIENT_ID and AZURE_TENANT_ID: the identity has to be of that tenant.",
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
        "SecretsInjectionError",
        "",
        errors.AccessDenied,
        "The endpoint's identity did not get a secret that the deployment names.",
        f"Check that each secret in environment_variables exists, and give the identity {CONNECTION_ROLE} on the "
        "workspace, or Key Vault Secrets User on the vault; a new role takes minutes to work.",
    ),
    Cause(
        "",
        r"startup task failed due to (an )?(authorization|incorrect role)",
        errors.AccessDenied,
        "The endpoint's identity may not read its image or its model.",
        "Give it AcrPull on the workspace's registry and Storage Blob Data Reader on its storage account.",
    ),
    Cause(
        "",
        r"designated private link|public (network )?access .{0,40}(disabled|not (allowed|enabled|permitted))",
        errors.AccessDenied,
        "The resource lets in its private network only; no role changes that.",
        "Run the command inside the virtual network, or have public access allowed on what the message names.",
    ),
    Cause(
        "WorkspaceManagedNetworkNotReady",
        "",
        errors.AzureError,
        "The workspace's managed network is not made yet.",
        "Run `az ml workspace provision-network --name WORKSPACE`, once, and then the same command again.",
    ),
    Cause(
        "ForbiddenByRbac ForbiddenByPolicy",
        "",
        errors.AccessDenied,
        "The key vault does not let this identity read.",
        "Give it the role Key Vault Secrets User on the key vault.",
    ),
)
