"""A hub on loopback: the few endpoints that huggingface_hub calls, over folders on disk, counting bytes sent."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PULL = "89abcdef0123456789abcdef0123456789abcdef"
_API = re.compile(r"^/api/models/(?P<repo>.+?)(?:/revision/(?P<revision>[^/]+))?$")
_TREE = re.compile(r"^/api/models/(?P<repo>.+?)/tree/(?P<revision>[^/]+)$")
_FILE = re.compile(r"^/(?P<repo>.+?)/resolve/(?P<revision>[^/]+)/(?P<file>.+)$")


class FakeHub:
    """Repositories by id; `gated` ones answer 403, and `broken` makes every answer a 500."""

    def __init__(self) -> None:
        self.repos: dict[str, Path] = {}
        self.gated: set[str] = set()
        self.broken = False
        self.sent: Counter[str] = Counter()  # bytes by file name
        self.tokens: set[str] = set()
        self.url = ""

    @contextmanager
    def serving(self) -> Iterator[FakeHub]:
        hub = self

        class Handler(_Handler):
            state = hub

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        self.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield self
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


class _Handler(BaseHTTPRequestHandler):
    state: FakeHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def log_message(self, *_: object) -> None:
        """Stay silent."""

    def _answer(self, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.state.tokens |= {self.headers.get("authorization", "")}
        if self.state.broken:
            self._send(500, b"{}", body=body)
        elif match := _TREE.match(path):
            self._tree(match["repo"], match["revision"], body)
        elif match := _API.match(path):
            self._info(match["repo"], match["revision"], body)
        elif match := _FILE.match(path):
            self._file(match["repo"], match["revision"], match["file"], body)
        else:
            self._send(404, b"{}", body=body)

    def _refused(self, repo: str, revision: str | None, body: bool) -> bool:
        if repo not in self.state.repos:
            self._send(401, b"{}", {"X-Error-Code": "RepoNotFound"}, body)
        elif repo in self.state.gated:
            self._send(403, b"{}", {"X-Error-Code": "GatedRepo"}, body)
        elif revision not in (None, "main", COMMIT, PULL, "refs/pr/1"):
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, body)
        else:
            return False
        return True

    def _info(self, repo: str, revision: str | None, body: bool) -> None:
        if self._refused(repo, revision, body):
            return
        siblings = [{"rfilename": name, "size": len(content)} for name, content in self._files(repo).items()]
        info = {"_id": "1", "id": repo, "sha": COMMIT, "private": False, "siblings": siblings}
        self._send(200, json.dumps(info).encode(), {"Content-Type": "application/json"}, body)

    def _tree(self, repo: str, revision: str, body: bool) -> None:
        if self._refused(repo, revision, body):
            return
        entries = [
            {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for name, content in self._files(repo).items()
        ]
        self._send(200, json.dumps(entries).encode(), {"Content-Type": "application/json"}, body)

    def _files(self, repo: str) -> dict[str, bytes]:
        folder = self.state.repos[repo]
        files = (path for path in sorted(folder.rglob("*")) if path.is_file())
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}

    def _file(self, repo: str, revision: str, name: str, body: bool) -> None:
        if self._refused(repo, revision, body):
            return
        path = self.state.repos[repo] / name
        if not path.is_file():
            self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"}, body)
            return
        content = path.read_bytes()
        headers = {
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Repo-Commit": COMMIT,
            "Accept-Ranges": "bytes",
        }
        status, part = 200, content
        if match := re.match(r"bytes=(\d+)-(\d*)$", self.headers.get("range", "")):
            start, stop = int(match[1]), min(int(match[2] or len(content)), len(content) - 1)
            status, part = 206, content[start : stop + 1]
            headers["Content-Range"] = f"bytes {start}-{stop}/{len(content)}"
        if body:
            self.state.sent[name] += len(part)
        self._send(status, part, headers, body)

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None, body: bool = True) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(content)
