"""The benchmark beside vLLM: how its server is started and ended, what is asked of it, and how rows are told.

A small server stands for vLLM, which needs a GPU: it takes `vllm serve`'s arguments and answers the same routes.
"""

from argparse import Namespace
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from benchmarks import beside_vllm
from benchmarks.http_clients import NEW
from benchmarks.vllm_server import VLLM, Server

_STANDS_FOR_VLLM = """
import json, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

assert sys.argv[1] == "serve" and "--dtype" in sys.argv, sys.argv
model, port, tokens = sys.argv[2], int(sys.argv[sys.argv.index("--port") + 1]), TOKENS
if "--refuse" in sys.argv:
    sys.exit("no such backend")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.answer({"version": "0.0.1", "model": model})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert asked["model"] == sys.argv[sys.argv.index("--served-model-name") + 1]
        if not asked["stream"]:
            words = len(asked["prompt"].split())
            return self.answer({"usage": {"prompt_tokens": words + 2, "completion_tokens": tokens}})
        self.send_response(200)
        self.end_headers()
        for _ in range(tokens):
            self.wfile.write(b'data: {"choices": []}\\n\\n')
        self.wfile.write(b"data: [DONE]\\n\\n")

    def answer(self, value):
        raw = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_):
        pass


class Many(ThreadingHTTPServer):
    request_queue_size = 64


Many(("127.0.0.1", port), Handler).serve_forever()
"""


def _packages(folder: Path, tokens: int = NEW) -> Path:
    """A folder from which the stand-in is imported as vLLM."""
    inner = folder / "vllm" / "entrypoints" / "cli"
    inner.mkdir(parents=True)
    (inner / "main.py").write_text(_STANDS_FOR_VLLM.replace("TOKENS", str(tokens)), encoding="utf-8")
    return folder


@pytest.fixture
def other(tmp_path: Path) -> Iterator[VLLM]:
    with closing(VLLM(tmp_path / "model", tmp_path / "log", "float16", _packages(tmp_path / "site"), ())) as server:
        server.wait()
        yield server


def test_vllm_is_started_from_a_folder_asked_and_ended(other: VLLM, tmp_path: Path) -> None:
    assert other.ask("/version") == {"version": "0.0.1", "model": str(tmp_path / "model")}
    assert other.version() == "0.0.1"
    whole = beside_vllm.one("vLLM", other, 3, "completions", 1)
    streamed = beside_vllm.one("vLLM", other, 3, "openai", 1)
    assert (whole["failed"], streamed["failed"]) == (0, 0)
    assert whole["first p50"] is None and whole["token p50"] is None
    assert streamed["first p50"] > 0
    assert streamed["token p50"] > 0
    assert whole["processor us"] >= 0
    other.close()
    with pytest.raises(OSError, match="refused"):
        other.ask("/version")


def test_a_server_that_ends_at_once_tells_its_last_lines(tmp_path: Path) -> None:
    server = VLLM(tmp_path / "model", tmp_path / "log", "float16", _packages(tmp_path / "site"), ["--refuse"])
    with pytest.raises(SystemExit, match="no such backend\nvLLM did not start"):
        server.wait()


def test_servers_that_count_other_tokens_are_not_compared(other: VLLM, tmp_path: Path) -> None:
    beside_vllm.check({"ours": other, "vLLM": Server(f"http://127.0.0.1:{other.port}")})
    with closing(VLLM(tmp_path / "model", tmp_path / "log", "float16", _packages(tmp_path / "few", 5), ())) as few:
        few.wait()
        with pytest.raises(SystemExit, match="count other tokens"):
            beside_vllm.check({"ours": other, "vLLM": few})


def test_a_url_that_is_none_is_refused_in_a_sentence() -> None:
    with pytest.raises(SystemExit, match="give one like http"):
        Server("localhost:8000")


def test_rows_are_medians_of_turns_after_the_first_and_told_beside_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[tuple[str, int]] = []

    def one(name: str, server: Server, clients: int, way: str, seed: int) -> dict[str, object]:
        seeds.append((way, seed))
        rate = (300.0 if name == "ours" else 100.0) + (seed == 0) * 1e6
        row = {"server": name, "clients": clients, "way": way, "failed": seed == 1, "tokens/s": rate}
        return row | dict.fromkeys(beside_vllm.TIMES, None if way == "completions" else 2.0)

    monkeypatch.setattr(beside_vllm, "one", one)
    servers = {"ours": Server("http://a:1"), "vLLM": Server("http://b:1")}
    rows = beside_vllm.take_turns(servers, Namespace(rounds=2, clients=[4]))
    assert [(row["server"], row["way"], row["tokens/s"], row["failed"]) for row in rows[:2]] == [
        ("ours", "completions", 300.0, 1),
        ("vLLM", "completions", 100.0, 1),
    ]
    assert seeds[:2] == [("completions", 0)] * 2  # both are asked for the same prompts
    whole, streamed = beside_vllm.beside(rows)
    assert whole == {"server": "ours / vLLM", "clients": 4, "way": "completions", "tokens/s": 3.0}
    assert streamed["first p50"] == 1.0
