"""Digests of base images: asked of a registry over HTTP, taken from the manifest itself, and written or left alone."""

import hashlib
import http.server
import json
import threading

import pytest

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
