"""A bundle's own handler.py behind a server's ports, with the answers made in another process than the model's."""

from __future__ import annotations

from pathlib import Path

import httpx

import mii_azure
from local_runner.client.client import Client
from local_runner.process.launch import Runner
from tests.conftest import Tiny
from tests.fork_server import ForkServer, forking

HANDLER = """
def preprocess(inputs, parameters):
    if inputs == ["fail"]:
        raise RuntimeError("a secret")
    return [each.upper() for each in inputs], parameters


def postprocess(outputs):
    return {"handled": outputs}
"""


def test_hooks_run_in_front_ends_and_on_both_ports(tiny: Tiny, tmp_path: Path, fork_server: ForkServer) -> None:
    (tmp_path / "mine.py").write_text(HANDLER)
    model = str(tiny("roberta", "fill-mask"))
    bundle = mii_azure.generate(
        "fill-mask", model, "own", output=tmp_path / "b", handler=str(tmp_path / "mine.py"), passes_off=("cpu",)
    )
    with forking(fork_server), Runner(bundle, arguments=("--front-ends", "1", "--drain-seconds", "1")) as runner:
        url = f"http://127.0.0.1:{runner.http_port}/score"
        told = httpx.post(url, json={"inputs": "a [mask] b"}, timeout=60).json()
        assert len(told["handled"]) == 5
        failed = httpx.post(url, json={"inputs": "fail"}, timeout=60)
        assert (failed.status_code, failed.json()["error"]["code"]) == (500, "handler_failed")
        assert "secret" not in failed.text
        with Client(f"127.0.0.1:{runner.grpc_port}") as client:
            assert client.query({"inputs": "a [mask] b"}) == told
