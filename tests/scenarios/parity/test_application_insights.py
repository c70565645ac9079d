"""Azure's server with Application Insights on, which is a receiver on loopback here: what of ours arrives there."""

import gzip
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

import mii_azure
from local_runner.process.launch import LOOPBACK, Azmlinfsrv
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("forked")

KEY = "00000000-0000-4000-8000-000000000000"
TEXT = "a text that is no log line"


class Insights:
    """Takes telemetry as Azure Monitor's ingestion does."""

    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = []
        insights = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                items = json.loads(body)
                insights.items += items
                told = {"itemsReceived": len(items), "itemsAccepted": len(items), "errors": []}
                answer = json.dumps(told).encode()
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer((LOOPBACK, 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [item["data"]["baseData"] for item in list(self.items) if item["data"]["baseType"] == kind]

    def wait(self, kind: str, found: Callable[[dict[str, Any]], bool]) -> None:
        until(lambda: any(found(each) for each in self.of(kind)), 90)


class Watched(Azmlinfsrv):
    """Azure's server, told to write to Application Insights, but without the answers."""

    def __init__(self, bundle: Path, port: int) -> None:
        super().__init__(bundle)
        self._watcher = f"InstrumentationKey={KEY};IngestionEndpoint=http://{LOOPBACK}:{port}"

    def _spawn(self, command: list[str], env: dict[str, str], **options: Any) -> None:
        settings = {
            "AML_APP_INSIGHTS_ENABLED": "true",
            "AML_APP_INSIGHTS_KEY": KEY,
            "APP_INSIGHTS_LOG_RESPONSE_ENABLED": "false",
            "APPLICATIONINSIGHTS_CONNECTION_STRING": self._watcher,
            "APPLICATIONINSIGHTS_STATSBEAT_DISABLED_ALL": "true",
        }
        super()._spawn(command, {**env, **settings}, **options)


def test_our_log_and_every_request_arrive_and_no_text_does(tiny: Callable[[str, str], Path], tmp_path: Path) -> None:
    bundle = mii_azure.generate(
        task="text-classification",
        model=str(tiny("bert", "text-classification")),
        deployment_name="watched",
        passes_off=("cpu",),  # which takes seconds of timing
        output=tmp_path / "bundle",
    )
    insights = Insights()
    with Watched(bundle, insights.server.server_port) as server:
        answer = httpx.post(f"http://{LOOPBACK}:{server.port}/score", json={"inputs": TEXT}, timeout=60)
        assert answer.status_code == 200
        insights.wait("RequestData", lambda request: "/score" in request["name"])
        insights.wait("MessageData", lambda line: "now ready" in line["message"])
    insights.server.shutdown()
    insights.server.server_close()
    assert TEXT not in json.dumps(insights.items)
