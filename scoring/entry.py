"""`init` and `run` behind score.py, under azureml-inference-server-http's contract.

One process, one model: `init` loads it, `run` may be called from many threads.
"""

import gc
import importlib
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from scoring.api.hooks import Hooks
from scoring.api.hooks import load as load_hooks
from scoring.config import AdapterRef, Deployment, find_model_dir
from scoring.errors import MiiAzureError, OutOfMemory
from scoring.limits import cpus, short_memory
from scoring.lora.served import AdapterChange
from scoring.telemetry.statistics import phase

#: Seconds after which a thread gives the interpreter to another that waits; Python's own 5 ms are longer than a step
#: of a GPU, which would be idle while the inference thread waits for threads that write answers.
SWITCH_S = 0.0005
#: New objects after which the garbage collector looks at them: each token of a stream makes two, and Python's own 700
#: would cost a fifth of a streaming server's time.
COLLECT_AFTER = 20_000

CODE_DIR = Path(__file__).resolve().parent.parent

_service: Any = None
_front_ends: Any = None  # the server of this process's engine, if processes of front ends use it
_room: Any = None  # for adapters that are loaded while the model serves
_engine: Any = None  # of another process, if this one is a front end of it


def init() -> None:
    """Load the model and warm it up; raises LoadError and its kinds, with a sentence and a remedy.

    A front end loads all but the model, and waits for the engine to be ready.
    """
    global _service
    _logging()
    # Set before anything imports torch: no hub access while serving, no tokenizer fork warnings, OpenMP's threads.
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    cpus.settle()
    sys.setswitchinterval(SWITCH_S)
    with _memory():
        deployment = Deployment.read(CODE_DIR / "deployment.json")
        hooks = load_hooks(CODE_DIR) if deployment.handler else Hooks()
        service = _loaded(deployment) if _engine is None else _front_end(deployment)
    service.hooks = hooks
    _service = service
    if _front_ends is not None:
        _front_ends.serve(_service)


@contextmanager
def _memory() -> Iterator[None]:
    """Raise OutOfMemory for what says that memory ran out, whichever library it comes from."""
    try:
        yield
    except Exception as error:
        if isinstance(error, MiiAzureError) or not short_memory.says_so(error):
            raise
        raise OutOfMemory(
            "Memory ran out while the libraries and the model were loaded.",
            "Give the process more; a limit on it (ulimit -v) counts libraries too.",
        ) from error


@contextmanager
def _importing() -> Iterator[None]:
    """Keep the garbage collector from what is imported, now and later: it stays, and would take a sixth of a start."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        with suppress(ModuleNotFoundError):  # which batches do without; the first answer would wait for it
            importlib.import_module("azureml_inference_server_http.api.aml_response")
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()


def _loaded(deployment: Deployment) -> Any:
    with _importing():
        importlib.import_module("transformers.modeling_utils")
        from scoring.api.service import Service
        from scoring.model import caches
        from scoring.model.loader import environment, load_with
        from scoring.passes import verification_cache
        from scoring.passes.registry import catalogue
        from scoring.schema.registry import task_class

    caches.use_private()
    phase.enter("loading")
    loaded, chosen = load_with(catalogue(deployment), deployment, find_model_dir(CODE_DIR), _room)
    task = task_class(deployment.task)(loaded, deployment.task)
    service = Service(deployment, loaded, task, environment(loaded))
    service.on_adapters = _tell_adapters
    service.start(chosen, verification_cache.known_errors(CODE_DIR / "prepared", loaded.model))
    verification_cache.save(loaded.model, service.records)
    _settle()
    return service


def _front_end(deployment: Deployment) -> Any:
    with _importing():
        from scoring.front_ends.remote_answers import build

    service = build(deployment, find_model_dir(CODE_DIR), _engine)
    _settle()
    return service


def attach(connection: socket.socket) -> None:
    """Have the engine of this process answer the front end at the other end of a connection; also before `init`."""
    global _front_ends
    if _front_ends is None:
        from scoring.front_ends.engine_server import EngineServer

        _front_ends = EngineServer(_state)
        if _service is not None:
            _front_ends.serve(_service)
    _front_ends.attach(connection)


def become_front_end(connection: socket.socket) -> None:
    """Use the engine at the other end of a connection in place of one here; before `init`."""
    global _engine
    from scoring.front_ends.remote_engine import RemoteEngine

    _engine = RemoteEngine(connection, lambda: os._exit(1))  # its callers can get no answer any more


def reserve_adapters(places: int, rank: int) -> None:
    """Make room for so many adapters of at most such a rank, to be loaded while the model serves; before `init`."""
    global _room
    from scoring.lora.loading import AdapterRoom

    _room = AdapterRoom(places, rank)


def change_adapters(change: AdapterChange) -> None:
    """Load or unload adapters; raises AdapterRefused, AdapterNotServed, Overloaded, or NotReady before `init`."""
    from scoring.errors import NotReady

    if _service is None:
        raise NotReady("The model is still loading.", "Try again shortly.")
    _service.change_adapters(change)


def adapters() -> tuple[AdapterRef, ...] | None:
    """Adapters that requests may name now, the same tuple until they change; None before `init`."""
    return _service.adapters if _service else None


def _tell_adapters(told: tuple[AdapterRef, ...]) -> None:
    if _front_ends is not None:
        _front_ends.tell_adapters(told)


def _state() -> Any:
    """Condition of this process, as front ends receive it."""
    from scoring.front_ends.messages import State

    return State(ready(), _service.lost if _service else "", phase.name, phase.began)


def _settle() -> None:
    """Spare the garbage collector all that lives as long as the process, and have it look less often at the rest."""
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER, *gc.get_threshold()[1:])


def run(raw: str) -> Any:
    """Answer one JSON body with an AMLResponse; bad input gets its status, never an exception."""
    from azureml_inference_server_http.api.aml_response import AMLResponse

    from scoring.api.answers import error_reply
    from scoring.errors import NotReady

    if _service is None:
        reply = error_reply(NotReady("The model is still loading.", "Try again shortly."))
    else:
        reply = _service.answer(raw)
    headers = {"Content-Type": "application/json", **reply.headers}
    return AMLResponse(reply.body, reply.status, headers, run_function_failed=reply.status >= 500)


def metadata() -> dict[str, Any]:
    """Metadata of the deployment and of what it runs on; only {"ready": False} before init."""
    return _service.metadata() if _service else {"ready": False}


def ready() -> bool:
    """Return True if requests are answered."""
    return bool(_service and _service.ready and not _service.lost)


def statistics() -> dict[str, Any]:
    """Phase and its seconds; after init also the engine's counts, times and queue."""
    if _engine is not None:
        state = _engine.state
        told = {"phase": state.phase, "phase_seconds": round(max(0.0, time.monotonic() - state.began), 3)}
        return {**told, **_service.statistics()} if _service else told
    if _front_ends is not None:
        _front_ends.settle()
    told = {"phase": phase.name, "phase_seconds": round(phase.seconds(), 3)}
    return {**told, **_service.statistics()} if _service else told


def change(**limits: Any) -> None:
    """Change `queue_size` and `request_timeout_s` for later requests; does nothing before init."""
    if _service:
        _service.change(**limits)


def drain(timeout_s: float) -> bool:
    """Finish accepted requests and take no more; False if the time ran out."""
    return _service.drain(timeout_s) if _service else True


def _logging() -> None:
    """Log to stderr unless the host has set up handlers."""
    root = logging.getLogger("mii_azure")
    if not root.handlers and not logging.getLogger().handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
        root.addHandler(handler)
    # If Azure's server writes to Application Insights, only records of that server's own loggers get there.
    for watcher in logging.getLogger("azmlinfsrv.print").handlers:
        root.addHandler(watcher)
    root.setLevel(os.environ.get("AZUREML_LOG_LEVEL", "INFO").upper())
