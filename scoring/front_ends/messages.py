"""Messages between the engine's process and a front end: rows, outputs, errors and facts, as plain values."""

import pickle
import traceback
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scoring import errors
from scoring.config import Deployment, Limits
from scoring.engine.row import Row
from scoring.errors import MiiAzureError, Overloaded

if TYPE_CHECKING:
    from scoring.engine.batch_invariance import Company

#: Fields of a row that cross as they are.
_FIELDS = ("item", "key", "parameters", "new_tokens", "cut", "windows", "copies", "answer", "answers", "priority")


@dataclass(frozen=True)
class EngineFacts:
    """Facts about the loaded model with which a front end makes rows and answers as the engine's process would."""

    limits: Limits
    context_length: int
    precision: str
    company: "Company"
    side: str  # of padding; empty for tasks that have no choice
    generation_config: Any  # the model's defaults; None for tasks that generate no text
    slots: tuple[int, int] | None  # most tokens of a decoder's slot, as it is and as the model takes


@dataclass(frozen=True)
class State:
    """Condition of the engine's process."""

    ready: bool = False
    lost: str = ""
    phase: str = "importing"
    began: float = 0.0  # of the phase, by the monotonic clock, which all processes of a machine share


class EngineFailure(Exception):
    """Raised for a row that failed in the engine's process otherwise than by an error of the interface."""


def facts_of(deployment: Deployment, task: Any) -> bytes:
    """EngineFacts of a task that is ready to serve, pickled.

    A front end reads them where it loads, because two threads cannot import transformers at once.
    """
    loaded = task.loaded
    decoder = loaded.runtime.decoder
    facts = EngineFacts(
        deployment.limits,
        loaded.context_length,
        loaded.precision,
        task.company,
        getattr(task, "side", ""),
        getattr(task, "defaults", None),
        None if decoder is None else (decoder.max_length, decoder.full_length),
    )
    return pickle.dumps(facts, pickle.HIGHEST_PROTOCOL)


def read_facts(pickled: bytes) -> EngineFacts:
    """EngineFacts as the engine's process has sent them."""
    facts: EngineFacts = pickle.loads(pickled)  # noqa: S301  # see `channel`
    return facts


def pack_rows(rows: Sequence[Row]) -> list[tuple[Any, ...]]:
    """Rows as tuples: features as arrays, the fields, and whether somebody waits for pieces."""
    return [
        (
            {name: array("q", ids) for name, ids in row.features.items()},
            tuple(getattr(row, name) for name in _FIELDS),
            row.extra if row.emit is None else None,
            row.emit is not None,
        )
        for row in rows
    ]


def parameters_of(packed: tuple[Any, ...]) -> Any:
    """Parameters of a packed row."""
    return packed[1][_FIELDS.index("parameters")]


def unpack_row(packed: tuple[Any, ...]) -> tuple[Row, bool]:
    """Row of a packed one, and whether somebody waits for its pieces."""
    features, values, extra, streamed = packed
    row = Row({name: ids.tolist() for name, ids in features.items()}, **dict(zip(_FIELDS, values, strict=True)))
    row.extra = extra
    return row, streamed


def pack_error(error: BaseException) -> tuple[Any, ...]:
    """Error as a tuple: one of the interface by its class, any other by what it says."""
    if isinstance(error, MiiAzureError) and getattr(errors, type(error).__name__, None) is type(error):
        return type(error).__name__, error.message, error.hint, error.where, getattr(error, "retry_after_s", 0)
    return "", "".join(traceback.format_exception(error)), "", "", 0


def unpack_error(packed: tuple[Any, ...]) -> Exception:
    """Error of a packed one."""
    name, message, hint, where, retry_after_s = packed
    if not name:
        return EngineFailure(message)
    kind = getattr(errors, name)
    error: MiiAzureError = kind(message, hint, retry_after_s) if kind is Overloaded else kind(message, hint, where)
    return error
