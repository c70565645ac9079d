"""Servers of a bundle: Azure's inference server, or the runner's HTTP host that the bundle carries."""

from pathlib import Path
from typing import Any, Literal, NamedTuple

from local_runner.flags import serving

Server = Literal["azmlinfsrv", "http"]

PORT = 5001
WORKER_TIMEOUT_S = 300  # above Azure's cap of 180 s on a request: the server never kills a worker that may still answer
PROBE_THREADS = 2  # one each for the liveness and the readiness probe, beside the requests in flight
DRAIN_S = 25  # within Kubernetes' default of 30 s between SIGTERM and SIGKILL

HOST = Path(__file__).resolve().parents[2] / "local_runner"
HOST_FOLDER = "code/local_runner/"
HOST_MODULE = "local_runner.container"
# Everything of `local_runner` that `container` imports, sorted; a test checks the list.
HOST_FILES = (
    "__init__.py",
    "bundle/__init__.py",
    "bundle/environment.py",
    "bundle/manifest.py",
    "bundle/script.py",
    "container.py",
    "errors.py",
    "flags/__init__.py",
    "flags/flag.py",
    "flags/serving.py",
    "front_ends/__init__.py",
    "front_ends/board.py",
    "front_ends/control.py",
    "front_ends/front_end.py",
    "front_ends/number.py",
    "front_ends/pool.py",
    "host/__init__.py",
    "host/adapter_policy.py",
    "host/callers.py",
    "host/departures.py",
    "host/event_loop_streams.py",
    "host/host.py",
    "host/reload.py",
    "host/thread_pool.py",
    "http/__init__.py",
    "http/adapter_calls.py",
    "http/app.py",
    "http/audio.py",
    "http/azure_paths.py",
    "http/bodies.py",
    "http/event_responses.py",
    "http/hub.py",
    "http/messages.py",
    "http/messages_events.py",
    "http/oip_bodies.py",
    "http/openai.py",
    "http/openai_events.py",
    "http/openapi_bodies.py",
    "http/responses.py",
    "http/responses_events.py",
    "http/retrieval.py",
    "http/server.py",
    "http/tei.py",
    "http/tgi.py",
    "http/tokens.py",
    "http/uvicorn_protocol.py",
    "process/__init__.py",
    "process/devices.py",
    "process/leash.py",
    "process/ready_file.py",
    "protocol/__init__.py",
    "protocol/addresses.py",
    "protocol/allowed_tools.py",
    "protocol/audio_requests.py",
    "protocol/errors.py",
    "protocol/hub_requests.py",
    "protocol/messages_requests.py",
    "protocol/oip.py",
    "protocol/openai_errors.py",
    "protocol/openai_logprobs.py",
    "protocol/openai_messages.py",
    "protocol/openai_requests.py",
    "protocol/responses_requests.py",
    "protocol/retrieval_requests.py",
    "protocol/tei_requests.py",
    "protocol/tgi_requests.py",
    "protocol/token_requests.py",
    "telemetry/__init__.py",
    "telemetry/logs.py",
    "telemetry/metrics.py",
    "telemetry/otlp.py",
    "telemetry/terminal.py",
    "telemetry/tracing.py",
)
HOST_PACKAGES = ("fastapi", "httptools", "prometheus-client", "starlette", "uvicorn", "uvloop")
HTTP_LOCK = "http.lock"
SPEECH_LOCK = "speech.lock"  # of bundles whose task hears


class Routes(NamedTuple):
    """Routes at which Azure ML probes the container and sends requests, all on PORT."""

    liveness_route: str
    readiness_route: str
    scoring_route: str


_ROUTES: dict[Server, Routes] = {
    "azmlinfsrv": Routes("/", "/", "/score"),
    # A scoring route of / lets every path through, /v1/* included; a POST to / itself is scored.
    "http": Routes("/healthz", "/readyz", "/"),
}
_COMMAND: dict[Server, str] = {
    "azmlinfsrv": 'azmlinfsrv --port 5001 --entry_script "$AZUREML_ENTRY_SCRIPT"',
    "http": f"python -m {HOST_MODULE}",
}


def routes(server: Server) -> Routes:
    """Routes of environment.yml."""
    return _ROUTES[server]


def settings(server: Server, concurrent_requests: int) -> dict[str, str]:
    """Environment variables of the server.

    Azure's runs one worker, since another would load the model again, and a thread per request in flight and per probe.
    """
    if server == "http":
        return {
            serving.DRAIN_SECONDS.twin: str(DRAIN_S),
            serving.HTTP_PORT.twin: str(PORT),
            serving.LOG_FORMAT.twin: "json",
        }
    return {
        "GUNICORN_CMD_ARGS": f"--worker-class gthread --threads {concurrent_requests + PROBE_THREADS}",
        "WORKER_COUNT": "1",
        "WORKER_TIMEOUT": str(WORKER_TIMEOUT_S),
    }


def context(server: Server) -> dict[str, Any]:
    """Template variables of the server."""
    return {"own_server": server == "http", "routes": routes(server)._asdict(), "command": _COMMAND[server]}


def why(server: Server) -> str:
    """Reason that plan.md gives; "" for Azure's own, which needs none."""
    if server == "azmlinfsrv":
        return ""
    return (
        "Asked for: event streams, /v1/* as OpenAI has it, /v2/*, /metrics, and readiness that says how far the start"
        f" is. A stop drains for {DRAIN_S} s, then ends. Application Insights is not written to."
    )
