"""Azure Resource Manager: a store of bodies by path, with what the service adds, and its long-running operations.

Paths are compared without regard to case, as ARM does.
"""

import re
import time
from collections import Counter
from copy import deepcopy
from typing import Any

from tests.mii_azure.azure.fake_arm.subscription import REGISTRY, STORAGE, VAULT, Subscription

LONG = re.compile(r"/(?:online|batch)Endpoints/[^/]+(/deployments/[^/]+)?$")
STORE = re.compile(r"/datastores/workspaceblobstore(/listSecrets)?$")
ACCOUNT = "https://fakestore.blob.core.fakeazure.test"


class Arm:
    """`resources` are the bodies by path in small letters; `made` counts what came into being, so that twice shows."""

    def __init__(self, cloud: Any) -> None:
        self.cloud = cloud
        self.resources: dict[str, dict[str, Any]] = {}
        self.made: Counter[str] = Counter()
        self.operations: dict[str, dict[str, Any]] = {}
        self.polls = 0  # how often a long-running operation says InProgress
        self.failures: dict[str, dict[str, Any]] = {}  # by slot or endpoint: the error that its next operation ends in
        self.tokens = 0
        self.logs = "Loading\nTraceback (most recent call last):\n  File x\nValueError: weights are missing\n"
        self.refused_tokens: set[str] = set()
        self.expires: dict[str, float] = {}  # by token
        self.clock = time.time
        self.isolation = ""  # of the workspace's managed network
        self.missing: set[str] = set()  # properties that no answer to a GET has
        self.subscription = Subscription()

    def endpoint(self, name: str) -> dict[str, Any] | None:
        """The endpoint of that name, in whatever case: host names have none."""
        return self.endpoint_of("online", name)

    def endpoint_of(self, kind: str, name: str) -> dict[str, Any] | None:
        ends = f"/{kind}endpoints/{name}".lower()
        return next((body for path, body in self.resources.items() if path.endswith(ends)), None)

    def deployment(self, name: str, slot: str) -> dict[str, Any] | None:
        ends = f"/onlineendpoints/{name}/deployments/{slot}".lower()
        return next((body for path, body in self.resources.items() if path.endswith(ends)), None)

    def secret(self, name: str) -> str:
        """What a request to the endpoint must carry."""
        endpoint = self.endpoint(name)
        mode = endpoint["properties"]["authMode"] if endpoint else ""
        return {"Key": f"key-of-{name}", "AMLToken": f"token-{self.tokens}-of-{name}"}.get(mode, "aad").lower()

    def answer(self, request: Any) -> Any:
        from tests.mii_azure.azure.fake_arm.cloud import Answer

        token = request.headers.get("authorization", "")
        over = self.expires.get(token, float("inf")) <= self.clock()
        if not token.startswith("Bearer ") or token in self.refused_tokens or over:
            return refusal(401, "ExpiredAuthenticationToken", "The access token expiry UTC time is earlier than now.")
        path = request.path
        if path.startswith("/operations/"):
            return self._operation(path)
        if STORE.search(path):
            return Answer(200, self.cloud.blobs.secrets() if request.method == "POST" else self._datastore(path))
        if request.method == "POST":
            return self._action(path)
        if request.method == "PUT":
            return self._put(path, request.json)
        if request.method == "DELETE":
            return self._delete(path)
        return self._get(path, request.query)

    def _datastore(self, path: str) -> dict[str, Any]:
        """The workspace's default datastore."""
        properties = {
            "datastoreType": "AzureBlob",
            "accountName": "fakestore",
            "containerName": "models",
            "endpoint": "core.fakeazure.test",
            "protocol": "https",
            "isDefault": True,
            "credentials": {"credentialsType": self.cloud.blobs.secrets()["secretsType"]},
        }
        return {"id": path, "name": "workspaceblobstore", "properties": properties}

    def _get(self, path: str, query: dict[str, str]) -> Any:
        from tests.mii_azure.azure.fake_arm.cloud import Answer

        if re.search(r"/workspaces/[^/]+$", path):
            parts = {"containerRegistry": REGISTRY, "storageAccount": STORAGE, "keyVault": VAULT}
            if self.isolation:
                parts["managedNetwork"] = {"isolationMode": self.isolation}
            parts["workspaceId"] = "00000000-0000-0000-0000-00000000000a"
            body = {"id": path, "name": path.rsplit("/", 1)[1], "location": "eastus", "properties": parts}
            return Answer(200, body)
        if (around := self.subscription.answer(path, query)) is not None:
            return Answer(200, around)
        if re.search(r"/(deployments|versions)$", path):
            if "hash" in query:  # over all names: the client asks under one that it has just made up
                codes = [body for key, body in self.resources.items() if "/codes/" in key]
                found = [body for body in codes if body["properties"]["properties"]["hash_sha256"] == query["hash"]]
            else:
                found = [body for key, body in self.resources.items() if key.rpartition("/")[0] == path.lower()]
            return Answer(200, {"value": found})
        for operation in self.operations.values():
            if operation["path"] == path.lower():
                self._advance(operation)
        found_one = deepcopy(self.resources.get(path.lower()))
        for name in self.missing if found_one else ():
            found_one["properties"].pop(name, None)
        return Answer(200, found_one) if found_one else refusal(404, "ResourceNotFound", f"{path} was not found.")

    def _put(self, path: str, body: dict[str, Any]) -> Any:
        from tests.mii_azure.azure.fake_arm.cloud import Answer

        created = path.lower() not in self.resources
        name = path.rsplit("/", 1)[1]
        kept = deepcopy(body)
        kept |= {"id": path, "name": name, "type": "Microsoft.MachineLearningServices/fake"}
        properties = kept.setdefault("properties", {})
        if "/models/" in path:
            properties["flavors"] = {}
        if created:
            self.made[re.sub(r"^.*/workspaces/[^/]+/", "", path).lower()] += 1
        self.resources[path.lower()] = kept
        if not LONG.search(path):
            return Answer(201 if created else 200, kept)
        if "/batchEndpoints/" in path:
            properties.setdefault("scoringUri", f"https://{name.lower()}.eastus.inference.fakeazure.test/jobs")
        elif "/deployments/" not in path:
            properties["scoringUri"] = f"https://{name.lower()}.eastus.inference.fakeazure.test/score"
            properties.setdefault("properties", {})
        else:
            properties.setdefault("scaleSettings", {"scaleType": "Default"})
        properties["provisioningState"] = "Creating" if created else "Updating"
        error = self.failures.pop(name, None)
        return Answer(201 if created else 200, deepcopy(kept), self._begin(path, error))

    def _begin(self, path: str, error: dict[str, Any] | None, delete: bool = False) -> dict[str, str]:
        key = f"/operations/{len(self.operations)}"
        self.operations[key] = {
            "path": path.lower(),
            "left": self.polls,
            "error": error,
            "delete": delete,
            "over": False,
        }
        return {"Azure-AsyncOperation": f"https://management.fakeazure.test{key}", "Retry-After": "1"}

    def _advance(self, operation: dict[str, Any]) -> str:
        if operation["left"]:
            operation["left"] -= 1
            return "InProgress"
        state = "Failed" if operation["error"] else "Succeeded"
        if not operation["over"]:
            operation["over"] = True
            if operation["delete"]:
                gone = [key for key in self.resources if (key + "/").startswith(operation["path"] + "/")]
                for key in gone:
                    del self.resources[key]
            elif operation["path"] in self.resources:
                self.resources[operation["path"]]["properties"]["provisioningState"] = state
        return state

    def _operation(self, key: str) -> Any:
        from tests.mii_azure.azure.fake_arm.cloud import Answer

        state = self._advance(self.operations[key])
        body = {"status": state} | ({"error": self.operations[key]["error"]} if state == "Failed" else {})
        return Answer(200, body, {"Retry-After": "1"})

    def _delete(self, path: str) -> Any:
        from tests.mii_azure.azure.fake_arm.cloud import Answer

        if path.lower() not in self.resources:
            return Answer(204)
        endpoint = self.resources.get(path.lower().partition("/deployments/")[0], {})
        if (endpoint.get("properties", {}).get("traffic") or {}).get(
            path.rsplit("/", 1)[1]
        ) and "/deployments/" in path:
            return refusal(400, "BadRequest", "The deployment has traffic.")
        if not LONG.search(path):
            del self.resources[path.lower()]
            return Answer(200)
        return Answer(202, None, self._begin(path, None, delete=True))

    def _action(self, path: str) -> Any:
        from tests.mii_azure.azure.fake_arm.cloud import Answer

        name = re.sub(r".*/onlineEndpoints/([^/]+)/.*", r"\1", path)
        if path.endswith("/listKeys"):
            return Answer(200, {"primaryKey": self.secret(name), "secondaryKey": "second"})
        if path.endswith("/token"):
            return Answer(200, {"accessToken": self.secret(name), "tokenType": "Bearer", "expiryTimeUtc": 0})
        if path.endswith("/getLogs"):
            return Answer(200, {"content": self.logs})
        if path.endswith("/startPendingUpload"):
            name = f"code-{path.split('/')[-4]}"
            container = f"{ACCOUNT}/{name}"
            credential = {"credentialType": "SAS", "sasUri": f"{container}?{self.cloud.blobs.sas(name)}"}
            reference = {"blobUri": container, "credential": credential, "storageAccountArmId": "fake"}
            return Answer(200, {"blobReferenceForConsumption": reference, "pendingUploadId": "1"})
        return refusal(404, "NotFound", path)


def refusal(status: int, code: str, message: str, **headers: str) -> Any:
    """An error as ARM words it."""
    from tests.mii_azure.azure.fake_arm.cloud import Answer

    return Answer(status, {"error": {"code": code, "message": message}}, headers)
