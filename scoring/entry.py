"""`init` and `run` behind score.py, under azureml-inference-server-http's contract.

One process, one model: `init` loads it, `run` may be called from many threads.
"""

import gc
import logging
import os
import sys
from pathlib import Path
from typing import Any

from scoring.config import Deployment, find_model_dir
from scoring.limits import cpus
from scoring.telemetry.statistics import phase

#: Seconds after which a thread gives the interpreter to another that waits; Python's own 5 ms are longer than a step
#: of a GPU, which would be idle while the inference thread waits for threads that write answers.
SWITCH_S = 0.0005
#: New objects after which the garbage collector looks at them: each token of a stream makes two, and Python's own 700
#: would cost a fifth of a streaming server's time.
COLLECT_AFTER = 20_000

CODE_DIR = Path(__file__).resolve().parent.parent

_service: Any = None


def init() -> None:
    """Load the model and warm it up; raises LoadError and its kinds, with a sentence and a remedy."""
    global _service
    _logging()
    # Set before anything imports torch: no hub access while serving, no tokenizer fork warnings, OpenMP's threads.
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    cpus.settle()
    sys.setswitchinterval(SWITCH_S)
    deployment = Deployment.read(CODE_DIR / "deployment.json")
    from scoring.api.service import Service
    from scoring.model import caches
    from scoring.model.loader import environment, load_with
    from scoring.passes import verification_cache
    from scoring.passes.registry import catalogue
    from scoring.schema.registry import task_class

    caches.use_private()
    phase.enter("loading")
    loaded, chosen = load_with(catalogue(deployment), deployment, find_model_dir(CODE_DIR))
    task = task_class(deployment.task)(loaded, deployment.task)
    service = Service(deployment, loaded, task, environment(loaded))
    service.start(chosen, verification_cache.known_errors(CODE_DIR / "prepared", loaded.model))
    verification_cache.save(loaded.model, service.records)
    _settle()
    _service = service


def _settle() -> None:
    """Spare the garbage collector all that lives as long as the process, and have it look less often at the rest."""
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER, *gc.get_threshold()[1:])


def run(raw: str) -> Any:
    """Answer one JSON body with an AMLResponse; bad input gets its status, never an exception."""
    from azureml_inference_server_http.api.aml_response import AMLResponse

    from scoring.api.service import error_reply
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
