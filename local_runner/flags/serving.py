"""Flags of `python -m local_runner`; `mii-azure serve` has those of PEOPLE, LOCAL and RAY, and passes them on."""

import re
from pathlib import Path

from local_runner.flags.flag import Flag

_MOST_FRONT_ENDS = 64
MOST_SERVED_NAMES = 32
MOST_ADAPTERS = 256
#: As browsers write them: a host in lower case, of any script in ASCII, and a port unless it is the usual one.
_ORIGIN = re.compile(r"https?://(?:[a-z0-9._-]{1,253}|\[[0-9a-f:.]{2,45}\])(?::[0-9]{1,5})?")
_HIGHEST_RANK = 256
_SERVED_NAME = re.compile(r"[^\s,\x00-\x1f\x7f]{1,128}")


def _port(number: int) -> None:
    if not 0 <= number <= 65535:
        raise ValueError(f"{number} is no port; ports go from 0 to 65535")


def _amount(number: float) -> None:
    if not number >= 0:  # nan is refused too
        raise ValueError(f"{number:g} is none: it takes numbers that are not negative")


def _front_ends(number: int) -> None:
    if not 0 <= number <= _MOST_FRONT_ENDS:
        raise ValueError(f"{number} is none: it takes 0 to {_MOST_FRONT_ENDS}")


def _origins(told: str) -> None:
    for origin in told.split(","):
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise ValueError(f"{origin[:80]!r} is no origin: those are like https://a.example or http://localhost:3000")


def _adapters(number: int) -> None:
    if not 1 <= number <= MOST_ADAPTERS:
        raise ValueError(f"{number} is none: it takes 1 to {MOST_ADAPTERS}")


def _rank(number: int) -> None:
    if not 1 <= number <= _HIGHEST_RANK:
        raise ValueError(f"{number} is none: it takes 1 to {_HIGHEST_RANK}")


def split_names(told: object) -> object:
    """Names of a text with commas; anything else is left as it is."""
    return [name.strip() for name in told.split(",") if name.strip()] if isinstance(told, str) else told


def check_served_name(name: str) -> str:
    """Return a name by which requests may call the model; raises ValueError for one that no client could send."""
    if not _SERVED_NAME.fullmatch(name):
        raise ValueError(f"{name[:80]!r} is no name of a model: 1 to 128 characters without blanks and commas")
    return name


def _served_names(told: str) -> None:
    names = [check_served_name(name) for name in told.split(",")]
    if len(names) > MOST_SERVED_NAMES:
        raise ValueError(f"there are {len(names)} names; it takes {MOST_SERVED_NAMES}")


HOST = Flag("host", "Address to listen on.", default="127.0.0.1", guard=True)
GRPC_PORT = Flag("grpc-port", "Port of gRPC; 0 picks a free one.", int, 50051, check=_port)
HTTP_PORT = Flag("http-port", "Port of HTTP; 0 picks a free one.", int, 5001, check=_port)
TLS_CERT = Flag("tls-cert", "PEM certificate that this side presents.", Path, guard=True)
TLS_KEY = Flag("tls-key", "PEM key of the certificate.", Path, guard=True)
TLS_CLIENT_CA = Flag("tls-client-ca", "PEM authorities that clients' certificates must be of.", Path, guard=True)
API_KEY_FILE = Flag("api-key-file", "File of API keys, one a line; a client sends the first.", Path, guard=True)
LOG_FORMAT = Flag(
    "log-format",
    "text for people, or json: one object a line, every request told.",
    default="text",
    choices=("text", "json"),
)
OTLP_ENDPOINT = Flag("otlp-endpoint", "Traces go to this OTLP/HTTP port: http://HOST:4318.")
SETTINGS_FILE = Flag(
    "settings-file", "JSON of log level, limits, drain and adapters; read again on SIGHUP, like keys.", Path, guard=True
)
NO_PAGE = Flag("no-page", "Serve no page to browsers at /; they get Healthy, as probes do.", bool, False)
SERVED_NAME = Flag(
    "served-name",
    "Comma-separated further names by which requests may call the model.",
    check=_served_names,
)
CORS_ORIGINS = Flag(
    "cors-origins",
    "Comma-separated origins whose pages may call it from a browser, such as https://a.example; * for all.",
    guard=True,
    check=_origins,
)
ADAPTER_ROOT = Flag(
    "adapter-root", "Folder below which LoRA adapters lie that may be loaded while it serves.", Path, guard=True
)
ALLOW_ADAPTERS = Flag("allow-adapters", "Have calls load and unload adapters; needs API keys.", bool, False)
MAX_ADAPTERS = Flag("max-adapters", "Most adapters at once, with --adapter-root.", int, 8, check=_adapters)
MAX_ADAPTER_RANK = Flag("max-adapter-rank", "Largest rank of those that are loaded.", int, 16, check=_rank)
ADAPTERS = (ADAPTER_ROOT, ALLOW_ADAPTERS, MAX_ADAPTERS, MAX_ADAPTER_RANK)
KEYS = (TLS_CERT, TLS_KEY, TLS_CLIENT_CA, API_KEY_FILE)
PEOPLE = (
    HOST,
    GRPC_PORT,
    HTTP_PORT,
    *KEYS,
    LOG_FORMAT,
    OTLP_ENDPOINT,
    SETTINGS_FILE,
    SERVED_NAME,
    CORS_ORIGINS,
    *ADAPTERS,
    NO_PAGE,
)

REPLICAS = Flag("replicas", "Processes that each hold the model, one per GPU or group of GPUs.", int, 1)
STICKY = Flag("sticky", "Header whose value keeps a session on one replica, such as x-session-id.")
FRONT_ENDS = Flag(
    "front-ends",
    "Processes that answer HTTP and gRPC beside the engine's; 0: none; by GPU and cores when absent.",
    int,
    check=_front_ends,
)
LOCAL = (REPLICAS, STICKY, FRONT_ENDS)

ENGINE = Flag(
    "engine",
    "local: in this process; ray: replicas in a Ray cluster.",
    default="local",
    choices=("local", "ray"),
)
RAY = (
    ENGINE,
    Flag("min-replicas", "ray: replicas that always run; 1 when absent.", int),
    Flag("max-replicas", "ray: replicas that autoscaling may reach.", int),
    Flag(
        "target-ongoing",
        "ray: requests per replica to scale at; the bundle's batch size when absent.",
        float,
        check=_amount,
    ),
    Flag("replica-cpus", "ray: CPUs of a replica, and its threads; 1 when absent.", float, check=_amount),
    Flag("replica-gpus", "ray: GPUs of a replica; as planned when absent.", float, check=_amount),
    Flag("ray-address", "ray: HOST:PORT of the cluster's head; this machine's cluster when absent."),
    Flag("start-seconds", "ray: how long the first replica may take to answer.", float, check=_amount),
)

DRAIN_SECONDS = Flag("drain-seconds", "How long requests in flight may take after SIGTERM.", float, 30.0, check=_amount)
READY_FILE = Flag("ready-file", "Where to write pid, ports and state as JSON.", Path, guard=True)
VERBOSE = Flag("verbose", "Log requests, and tracebacks of failures.", bool, False)
PROGRAMS = (DRAIN_SECONDS, READY_FILE, VERBOSE)  # of what starts and watches a runner

#: What an operator says of one server; a runner that another process starts on loopback has none of it.
OPERATORS = (*KEYS, SETTINGS_FILE, SERVED_NAME, CORS_ORIGINS, *ADAPTERS, *LOCAL)
