"""Digests of base images: asked of a registry over HTTP, taken from the manifest itself, and written or left alone."""

import hashlib
import http.server
import json
import threading

import pytest

from mii_azure.bundle import render as rendering
from mii_azure.bundle.render import images as images_shipped
from tests.mii_azure.bundles import rendered
from tools import digests

MANIFEST = json.dumps({"schemaVersion": 2, "manifests": []}).encode()
ANSWERS = {
    "/v2/azureml/base/manifests/latest": (200, MANIFEST),
    "/v2/azureml/page/manifests/latest": (200, b"<html>sign in</html>"),
    "/v2/azureml/list/manifests/latest": (200, b"[2]"),
}


@pytest.fixture
def registry():
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path.startswith("/v2/azureml/odd/"):
                self.wfile.write(b"no HTTP\r\n")
                return
            status, body = ANSWERS.get(self.path, (404, b"{}"))
            assert "image.index" in self.headers["Accept"]
            self.send_response(status)
            self.send_header("Docker-Content-Digest", "sha256:" + "0" * 64)  # which is not believed
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def images(registry):
    return {
        name: {"image": f"{registry}/azureml/base:latest", "digest": None, "digest_date": None}
        for name in ("cpu", "cuda13")
    }


def test_the_digest_is_the_hash_of_the_manifest(registry):
    expected = f"sha256:{hashlib.sha256(MANIFEST).hexdigest()}"
    assert digests.digest_of(f"{registry}/azureml/base:latest", "http") == expected
    made = digests.refreshed(images(registry), ["cpu"], "2026-11-29", "http")
    assert (made["cpu"]["digest"], made["cpu"]["digest_date"]) == (expected, "2026-11-29")
    assert made["cuda13"] == images(registry)["cuda13"]
    assert digests.forgotten(made, []) == digests.forgotten(made, ["cpu"]) == images(registry)
    assert digests.forgotten(made, ["cuda13"]) == made


@pytest.mark.parametrize(
    "name", [*(f"azureml/{each}:latest" for each in ("page", "list", "none", "odd")), "azureml/base"]
)
def test_what_is_no_manifest_is_no_digest(registry, name):
    with pytest.raises(digests.Unanswered, match=r"manifest|did not answer|form"):
        digests.digest_of(f"{registry}/{name}", "http")


def test_an_unreached_registry_changes_nothing(registry, tmp_path, monkeypatch):
    page = tmp_path / "images.json"
    page.write_text(json.dumps(images(registry)))
    before = page.read_bytes()
    monkeypatch.setattr(digests, "PAGE", page)
    monkeypatch.setattr("sys.argv", ["digests"])  # which asks over HTTPS
    with pytest.raises(SystemExit, match="Nothing was changed"):
        digests.main()
    assert page.read_bytes() == before
    monkeypatch.setattr("sys.argv", ["digests", "--forget"])
    digests.main()
    assert json.loads(page.read_text()) == images(registry)


@pytest.mark.parametrize("device", ["cpu", "t4"])
def test_bundles_carry_what_the_registry_had_when_it_was_asked(registry, tmp_path, monkeypatch, device):
    """From the registry's answer to the Dockerfile and to the plan's remark on patches; and back."""
    page, name = tmp_path / "images.json", f"{registry}/azureml/base"
    page.write_text(json.dumps({key: each | {"image": f"{name}:latest"} for key, each in images_shipped().items()}))
    monkeypatch.setattr(digests, "PAGE", page)
    monkeypatch.setattr(digests.refreshed, "__defaults__", ("http",))
    monkeypatch.setattr(rendering, "images", lambda: json.loads(page.read_text()))

    def after(*arguments):
        monkeypatch.setattr("sys.argv", ["digests", *arguments])
        digests.main()
        return rendered("fill-mask", device)

    pinned, hashed = after(), hashlib.sha256(MANIFEST).hexdigest()
    assert pinned["environment/Dockerfile"].count(f"FROM {name}:latest@sha256:{hashed}") == 2
    assert "gets no patches" in pinned["plan.md"]
    again = after("--forget")
    assert "@sha256" not in again["environment/Dockerfile"]
    assert hashed not in again["plan.md"]
