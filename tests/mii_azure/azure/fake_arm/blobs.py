"""The blob store: put blob, put block and block list, metadata, properties and listing."""

from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree


@dataclass
class Blob:
    data: bytes = b""
    metadata: dict[str, str] = field(default_factory=dict)
    blocks: dict[str, bytes] = field(default_factory=dict)


class Blobs:
    """{container/path: Blob} of the one storage account."""

    def __init__(self) -> None:
        self.blobs: dict[str, Blob] = {}

    def secrets(self) -> dict[str, str]:
        """What a datastore on this account answers to listSecrets."""
        return {"secretsType": "Sas", "sasToken": self.sas("models")}

    def sas(self, container: str) -> str:
        """A token for a container, which is there from now on."""
        return "sv=2025-01-01&sr=c&sig=fake"

    def tree(self, prefix: str) -> dict[str, bytes]:
        """Contents by path below `prefix`."""
        return {k.removeprefix(prefix): b.data for k, b in self.blobs.items() if k.startswith(prefix)}

    def answer(self, request: Any) -> Any:
        from tests.mii_azure.azure.fake_arm.cloud import Answer

        if "sig" not in request.query:
            return self._refused(403, "AuthenticationFailed")
        path, component = request.path.lstrip("/"), request.query.get("comp")
        stamp = {"ETag": '"1"', "Last-Modified": "Tue, 24 Nov 2026 00:00:00 GMT", "Content-Type": "text/plain"}
        found = self.blobs.get(path)
        if request.method == "PUT":
            return self._put(request, path, component, stamp)
        if found is None:
            return self._refused(404, "BlobNotFound", stamp)
        metadata = {f"x-ms-meta-{key}": value for key, value in found.metadata.items()}
        return Answer(200, found.data if request.method == "GET" else None, {**stamp, **metadata})

    def _put(self, request: Any, path: str, component: str | None, stamp: dict[str, str]) -> Any:
        from tests.mii_azure.azure.fake_arm.cloud import Answer

        metadata = {k.removeprefix("x-ms-meta-"): v for k, v in request.headers.items() if k.startswith("x-ms-meta-")}
        if component == "metadata":
            self.blobs[path].metadata = metadata
            return Answer(200, None, stamp)
        if component == "block":
            self.blobs.setdefault(f"?{path}", Blob()).blocks[request.query["blockid"]] = request.body
            return Answer(201, None, stamp)
        if request.headers.get("if-none-match") == "*" and path in self.blobs:
            return self._refused(409, "BlobAlreadyExists", stamp)
        data = request.body
        if component == "blocklist":
            blocks = self.blobs.pop(f"?{path}").blocks
            data = b"".join(blocks[entry.text or ""] for entry in ElementTree.fromstring(request.body))
        self.blobs[path] = Blob(data, metadata)
        return Answer(201, None, stamp)

    @staticmethod
    def _refused(status: int, code: str, stamp: dict[str, str] | None = None) -> Any:
        from tests.mii_azure.azure.fake_arm.cloud import Answer

        body = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>{code}, says the fake.</Message></Error>'
        return Answer(
            status, body.encode(), {**(stamp or {}), "Content-Type": "application/xml", "x-ms-error-code": code}
        )
