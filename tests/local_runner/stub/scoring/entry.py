"""Echoes texts in upper case, by the contract of the real package; the inputs steer what happens.

`until:PATH` answers once that file exists, `status:N` with that status, `crash` raises, `exit` ends the process,
`print` writes to standard output. STUB_LOAD in the environment is `until:PATH`, `fail`, `import` or `crash` and does
so in init(); a request that waits adds a line to the file that STUB_BUSY names.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from azureml_inference_server_http.api.aml_response import AMLResponse

from scoring.config import Deployment
from scoring.errors import InvalidInput, InvalidJson, LoadError, MiiAzureError, Overloaded, PayloadTooLarge

_state: dict[str, Any] = {}
closed = threading.Event()


def init() -> None:
    how, _, argument = os.environ.get("STUB_LOAD", "").partition(":")
    if how == "until":
        _wait(argument)
    if how == "fail":
        raise LoadError("The stub does not load.", "Do not ask it to.")
    if how == "import":
        import a_package_that_is_not_there  # noqa: F401
    if how == "crash":
        raise RuntimeError("an unforeseen failure")
    print("a library's stray print")
    _state["deployment"] = Deployment.read(Path(__file__).parent.parent / "deployment.json")


def metadata() -> dict[str, Any]:
    deployment = _state["deployment"]
    file = Path(sys.modules["scoring"].__file__ or "")
    return {
        "name": deployment.name,
        "task": deployment.task,
        "ready": True,
        "scoring": str(file),
        "model_dir": os.environ.get("AZUREML_MODEL_DIR"),
        "limits": _state.get("limits"),
        "streams_closed": closed.is_set(),
    }


def change(**limits: Any) -> None:
    _state["limits"] = limits


def ready() -> bool:
    return "deployment" in _state


def drain(timeout_s: float) -> None:
    if marker := os.environ.get("STUB_DRAINED"):
        Path(marker).write_text("drained")


def run(raw: str) -> AMLResponse:
    try:
        return _answer(raw)
    except MiiAzureError as error:
        return AMLResponse(error.to_dict(), error.http_status, error.headers, json_str=True)


def _answer(raw: str) -> AMLResponse:
    limit = _state["deployment"].limits.max_payload_bytes
    if len(raw.encode()) > limit:
        raise PayloadTooLarge(f"The stub takes {limit} bytes.")
    try:
        payload = json.loads(raw)
    except ValueError as error:
        raise InvalidJson("The body is not JSON.", "Send JSON.") from error
    if not isinstance(payload, dict):
        raise InvalidInput("The body is no object.", where="body")
    if payload.get("mii_azure") == "metadata":
        return AMLResponse(metadata(), 200, json_str=True)
    inputs, parameters = payload.get("inputs", ""), payload.get("parameters", {})
    if payload.get("stream") and inputs != "status:400":
        return AMLResponse(_events(inputs), 200, {"Content-Type": "text/event-stream"})
    if isinstance(inputs, list):
        return AMLResponse([_one(value, parameters) for value in inputs], 200, json_str=True)
    return AMLResponse(_one(inputs, parameters), 200, json_str=True)


def _one(value: Any, parameters: dict[str, Any]) -> dict[str, Any]:
    how, _, argument = value.partition(":") if isinstance(value, str) else ("", "", "")
    if how == "until":
        _wait(argument)
    elif how == "status" and argument == "429":
        raise Overloaded("The stub is full.", retry_after_s=7)
    elif how == "status":
        raise InvalidInput("The stub was told to refuse: ü.", "Ask for something else.", where="inputs[0]")
    elif how == "crash":
        raise RuntimeError("secret internals")
    elif how == "exit":
        os._exit(1)
    elif how == "print":
        print("noise on standard output")
    return {"echo": value.upper() if isinstance(value, str) else value, **parameters}


def _wait(path: str) -> None:
    if busy := os.environ.get("STUB_BUSY"):
        with Path(busy).open("a") as file:
            file.write("waiting\n")
    while not Path(path).exists():
        time.sleep(0.005)


def _events(text: str) -> Any:
    last = False
    try:
        for word in text.split():
            if word.startswith("until:"):
                _wait(word.removeprefix("until:"))
            if word == "fail":
                last = True
                yield b"data: " + json.dumps(Overloaded("The stub broke off.").to_dict()).encode() + b"\n\n"
                return
            yield b"data: " + json.dumps({"token": {"text": word.upper()}}).encode() + b"\n\n"
        last = True
        yield b"data: [DONE]\n\n"
    except GeneratorExit:  # left before its end, if not at its last event
        if not last:
            closed.set()
        raise
