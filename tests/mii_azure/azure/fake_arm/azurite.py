"""Azurite, Microsoft's own blob store for tests, behind the fake cloud: it judges signatures, blocks and conditions."""

import base64
import http.client
import os
import socket
import subprocess
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

HOST = "fakestore.blob.core.fakeazure.test"
KEY = base64.b64encode(b"a key for tests only, of 64 bytes".ljust(64, b".")).decode()
_HOP = {"connection", "transfer-encoding", "content-length", "keep-alive", "date", "server"}


class Azurite:
    """Takes the place of `Blobs`: requests are forwarded as they were sent, so that faults can still come between."""

    def __init__(self, modules: Path, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = ["node", str(modules / "azurite/dist/src/blob/main.js"), "--blobHost", "127.0.0.1"]
        command += ["--blobPort", str(self.port), "--inMemoryPersistence", "--silent"]
        environment = {**os.environ, "AZURITE_ACCOUNTS": f"fakestore:{KEY}"}
        self._log = (folder / "azurite.log").open("wb")
        self._process = subprocess.Popen(
            [*command, "--skipApiVersionCheck", "--disableTelemetry"],
            env=environment,
            cwd=folder,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        try:
            self._wait(folder)
        except AssertionError:
            self.close()
            raise
        self._made: set[str] = set()
        self.sas("models")

    def _wait(self, folder: Path) -> None:
        for _ in range(300):
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                assert self._process.poll() is None, (folder / "azurite.log").read_text()
                time.sleep(0.1)
        raise AssertionError((folder / "azurite.log").read_text())

    def close(self) -> None:
        """Stop it."""
        self._process.terminate()
        self._process.wait(10)
        self._log.close()

    def secrets(self) -> dict[str, str]:
        """The account's key, so that the client signs each request itself."""
        return {"secretsType": "AccountKey", "key": KEY}

    def sas(self, container: str) -> str:
        """A token that Azurite accepts for a container, which is there from now on."""
        from azure.storage.blob import ContainerSasPermissions, generate_container_sas

        until = datetime.now(UTC) + timedelta(hours=1)
        permission = ContainerSasPermissions(read=True, write=True, create=True, list=True, add=True)
        if container not in self._made:
            self._made.add(container)
            self._service().create_container(container)
        return generate_container_sas("fakestore", container, KEY, permission=permission, expiry=until)

    def tree(self, prefix: str) -> dict[str, bytes]:
        """Contents by path below `container/prefix`."""
        container, _, start = prefix.partition("/")
        client = self._service().get_container_client(container)
        names = [name for name in client.list_blob_names() if name.startswith(start)]
        return {name.removeprefix(start): client.download_blob(name).readall() for name in names}

    def _service(self) -> Any:
        from azure.storage.blob import BlobServiceClient

        address = f"DefaultEndpointsProtocol=http;AccountName=fakestore;AccountKey={KEY};"
        address += f"BlobEndpoint=http://127.0.0.1:{self.port}/fakestore;"
        return BlobServiceClient.from_connection_string(address)

    def answer(self, request: Any) -> Any:
        from tests.mii_azure.azure.fake_arm.cloud import Answer

        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            headers = {name: value for name, value in request.headers.items() if name != "host"}
            connection.putrequest(request.method, request.target, skip_host=True, skip_accept_encoding=True)
            connection.putheader("Host", HOST)
            for name, value in headers.items():
                connection.putheader(name, value)
            connection.endheaders(request.body or None)
            response = connection.getresponse()
            body = response.read()
            kept = {name: value for name, value in response.getheaders() if name.lower() not in _HOP}
            kept.setdefault("Content-Type", "application/xml")
            return Answer(response.status, body or None, kept)
        finally:
            connection.close()
