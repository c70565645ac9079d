"""Live endpoints: authentication, slots by header or traffic, mirroring, a real azmlinfsrv behind, and 424."""

import http.client
import random
from collections import Counter
from pathlib import Path
from typing import Any

from local_runner.bundle.manifest import bundle_digest
from local_runner.process.launch import Azmlinfsrv
from mii_azure.bundle.manifest import load_manifest


class Scoring:
    """Forwards to the server of the bundle that a slot runs; hosts are kept between tests, for they load models."""

    def __init__(self, cloud: Any, hosts: dict[str, Azmlinfsrv] | None = None) -> None:
        self.cloud = cloud
        self.hosts = hosts if hosts is not None else {}
        self.bundles: dict[str, Path] = {}  # by hash: what the image of a slot would hold
        self.served: Counter[str] = Counter()
        self.mirrored: Counter[str] = Counter()
        self.random = random.Random(0)

    def close(self) -> None:
        """Stop the servers."""
        for host in self.hosts.values():
            host.stop()
        self.hosts.clear()

    def answer(self, request: Any) -> Any:
        from tests.mii_azure.azure.fake_arm.cloud import Answer

        name = request.host.partition(".")[0]
        endpoint = self.cloud.arm.endpoint(name)
        if endpoint is None:
            return Answer(404, {"error": "no such endpoint"})
        if request.headers.get("authorization") != f"Bearer {self.cloud.arm.secret(name)}":
            return Answer(401, {"error": "key_auth_bad_header"})
        slot = request.headers.get("azureml-model-deployment") or self._by_traffic(endpoint)
        deployment = self.cloud.arm.deployment(name, slot)
        if deployment is None or deployment["properties"]["provisioningState"] != "Succeeded":
            return Answer(404, {"error": f"no deployment {slot!r}"})
        for mirror in endpoint["properties"].get("mirrorTraffic") or {}:
            self.mirrored[mirror] += 1
        self.served[slot] += 1
        status, body, kind = self._forward(deployment["tags"]["mii_azure_bundle"], request.body)
        headers = {"Content-Type": kind, "azureml-model-deployment": slot}
        if status == 200:
            return Answer(200, body, headers)
        return Answer(424, body, {**headers, "ms-azureml-model-error-statuscode": str(status)})

    def _by_traffic(self, endpoint: dict[str, Any]) -> str:
        shares = {slot: share for slot, share in (endpoint["properties"].get("traffic") or {}).items() if share}
        return self.random.choices(list(shares), list(shares.values()))[0] if shares else ""

    def _forward(self, digest: str, body: bytes) -> tuple[int, bytes, str]:
        bundle = self.bundles[digest]
        served = _served(bundle)
        with self.cloud.lock:
            if served not in self.hosts:
                host = Azmlinfsrv(bundle)
                host.__enter__()
                self.hosts[served] = host
        connection = http.client.HTTPConnection("127.0.0.1", self.hosts[served].port, timeout=60)
        try:
            connection.request("POST", "/score", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, response.read(), response.getheader("Content-Type", "application/json")
        finally:
            connection.close()


def _served(bundle: Path) -> str:
    """What the container would run: bundles that differ only around it share a host."""
    files = load_manifest(bundle)["files"]
    return bundle_digest({path: digest for path, digest in files.items() if path.startswith(("code/", "model/"))})
