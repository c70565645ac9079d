"""Settings that may change while the runner serves: a JSON file, read at start and again on SIGHUP.

    {"log_level": "info", "drain_seconds": 30, "queue_size": 64, "request_timeout_s": 60,
     "adapters": {"formal": "formal-v2"}}

Every key may be absent, which keeps the value of the command line or the bundle. Bundles stay as generated: this file
belongs to the operator, not to the plan.
"""

import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from local_runner.errors import RunnerFailed

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_HINT = "Keys: log_level, drain_seconds, queue_size, request_timeout_s, adapters."
_MOST_ROWS = 1 << 16
_LONGEST_S = 3600.0


@dataclass(frozen=True)
class Tuning:
    """Checked values; None keeps the value set elsewhere."""

    log_level: str | None = None
    drain_seconds: float | None = None
    queue_size: int | None = None  # rows that may wait; one more is answered 429
    request_timeout_s: float | None = None
    adapters: Mapping[str, str] | None = None  # folders below --adapter-root, by name

    @property
    def limits(self) -> dict[str, Any]:
        """Limits of the scoring package that are set."""
        given = {"queue_size": self.queue_size, "request_timeout_s": self.request_timeout_s}
        return {name: value for name, value in given.items() if value is not None}

    def told(self) -> str:
        """Summary of the settings, for a person."""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        if "adapters" in given:
            given["adapters"] = " ".join(given["adapters"]) or "none"
        return ", ".join(f"{name} {value}" for name, value in given.items())


def read_settings(path: Path | None) -> Tuning:
    """Read the settings from the file, none without one; raises RunnerFailed with a sentence naming the error."""
    if path is None:
        return Tuning()
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunnerFailed(f"{path} cannot be read: {error.strerror}.", "Check --settings-file.") from error
    except (ValueError, RecursionError) as error:
        raise RunnerFailed(f"{path} is not JSON: {error}.", _HINT) from error
    if not isinstance(given, dict):
        raise RunnerFailed(f"{path} holds no JSON object.", _HINT)
    known: dict[str, Callable[[Any], bool]] = {
        "log_level": lambda value: value in LEVELS,
        "drain_seconds": lambda value: _number(value) and 0 <= value <= _LONGEST_S,
        "queue_size": lambda value: _number(value) and value == int(value) and 1 <= value <= _MOST_ROWS,
        "request_timeout_s": lambda value: _number(value) and 0 < value <= _LONGEST_S,
        "adapters": lambda value: isinstance(value, dict) and all(isinstance(each, str) for each in value.values()),
    }
    for name, value in given.items():
        if name not in known:
            raise RunnerFailed(f"{path} sets {name!r}, which cannot change while the runner serves.", _HINT)
        if not known[name](value):
            raise RunnerFailed(f"{path} sets {name} to {value!r}.", _RANGES[name])
    return Tuning(**given)


_RANGES = {
    "log_level": f"It is one of {', '.join(LEVELS)}.",
    "drain_seconds": f"It is 0 to {_LONGEST_S:g}.",
    "queue_size": f"It is a whole number, 1 to {_MOST_ROWS}.",
    "request_timeout_s": f"It is more than 0, at most {_LONGEST_S:g}.",
    "adapters": 'It is an object of folders by name: {"formal": "formal-v2"}.',
}


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def set_level(level: str | None, usual: int) -> None:
    """Set the log level to `level`, or to the command line's; the scoring package's own loggers follow."""
    logging.getLogger().setLevel(LEVELS[level] if level else usual)
    own = os.environ.get("AZUREML_LOG_LEVEL", "INFO").upper()  # as the scoring package sets it at start
    logging.getLogger("mii_azure").setLevel(LEVELS[level] if level else own)
