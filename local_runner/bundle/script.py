"""Loads a bundle's score.py the way azureml-inference-server-http does, and calls it.

The same rules hold: the file is loaded by path and must define init() and run(); run() must take one argument besides
the optional `request_headers`, none positional-only or variadic; for a driver module the inner run() is called.
"""

import importlib.util
import inspect
import json
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from local_runner.bundle import manifest
from local_runner.bundle.environment import LOCK
from local_runner.errors import RunnerFailed
from scoring.errors import LoadError, MiiAzureError
from scoring.host_api import EventStream, ScoringEntry

HEADERS = "request_headers"


@dataclass(frozen=True)
class Answer:
    """Answer of run(); `body` is complete, or `chunks` yields it piece by piece, and `events` tells the same pieces."""

    status: int
    headers: dict[str, str]
    body: bytes = b""
    chunks: Iterator[bytes] | AsyncIterator[bytes] | None = None
    events: EventStream | None = None
    began: Callable[[], None] = lambda: None  # to be called when a stream's first piece is there
    close: Callable[[], None] = lambda: None

    def read(self) -> bytes:
        """Read the complete body, waiting for the end of a stream."""
        if not isinstance(self.chunks, Iterator):
            return self.body
        try:
            return b"".join(self.chunks)
        finally:
            self.close()


class ScoreScript:
    """The score.py of the bundle at `bundle`, whose code/ `manifest.enter` has put first on the import path."""

    def __init__(self, bundle: Path) -> None:
        self.bundle = bundle
        self.code = bundle / "code"
        self.loaded = False
        self._run: Callable[..., Any]
        self._argument: str
        self._wants_headers: bool

    def init(self) -> None:
        """Check the weights, import score.py and call its init(); raises BundleEdited or LoadError."""
        manifest.verify_hashes(self.bundle, weights=True)
        model = self.bundle / "model"
        if model.is_dir():
            os.environ["AZUREML_MODEL_DIR"] = str(model)
        os.environ["AML_APP_ROOT"] = str(self.code)
        self.start()

    def start(self) -> None:
        """Import score.py and call its init(); raises LoadError."""
        try:
            module = self._load()
            module.init()
        except MiiAzureError:
            raise
        except ModuleNotFoundError as error:
            raise LoadError(
                f"score.py needs the package {error.name!r}, which is not installed here.",
                f"Install the bundle's lock: pip install -r {self.bundle / LOCK}",
            ) from error
        except BaseException as error:
            raise LoadError(f"score.py did not start: {type(error).__name__}: {error}") from error
        self._check_scoring()
        self.loaded = True

    def run(self, raw: str, headers: Mapping[str, str] | None = None) -> Answer:
        """Call run() and convert its result; whatever run() raises passes through."""
        arguments: dict[str, Any] = {self._argument: raw}
        if self._wants_headers:
            arguments[HEADERS] = dict(headers or {})
        result = self._run(**arguments)
        if not hasattr(result, "status_code"):
            body = json.dumps(result).encode()
            return Answer(200, {"Content-Type": "application/json"}, body)
        sent = {key: value for key, value in result.headers.items() if key.lower() != "content-length"}
        if result.is_streamed:
            chunks = iter(result.iter_encoded())
            events = result.response if isinstance(result.response, EventStream) else None
            return Answer(result.status_code, sent, chunks=chunks, events=events, close=result.close)
        return Answer(result.status_code, sent, result.get_data())

    @property
    def entry(self) -> ScoringEntry:
        """The bundle's `scoring.entry`."""
        return cast(ScoringEntry, importlib.import_module("scoring.entry"))

    def _load(self) -> ModuleType:
        path = self.code / "score.py"
        spec = importlib.util.spec_from_file_location("entry_module", path)
        if spec is None or spec.loader is None:
            raise LoadError(f"{path} is not a Python file.")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        for name in ("init", "run"):
            if not hasattr(module, name):
                raise LoadError(f"score.py has no {name}() function.")
        driver = getattr(module, "driver_module", None)
        inner = driver if isinstance(driver, ModuleType) and hasattr(driver, "run") else module
        self._read_signature(inner.run)
        return module

    def _read_signature(self, run: Callable[..., Any]) -> None:
        parameters = list(inspect.signature(run).parameters.values())
        allowed = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        if any(parameter.kind not in allowed for parameter in parameters):
            raise LoadError("run() in score.py takes positional-only arguments, *args or **kwargs.")
        names = [parameter.name for parameter in parameters]
        self._wants_headers = HEADERS in names
        data = [name for name in names if name != HEADERS]
        if not data:
            raise LoadError("run() in score.py takes no argument for the request.")
        self._run, self._argument = run, data[0]

    def _check_scoring(self) -> None:
        found = str(getattr(sys.modules.get("scoring"), "__file__", ""))
        if not found.startswith(str(self.code) + os.sep):
            raise RunnerFailed(f"score.py runs {found or 'no scoring package'}, not the bundle's own `scoring`.")
