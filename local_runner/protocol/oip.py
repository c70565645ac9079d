"""Open Inference Protocol semantics, apart from its encodings.

A request carries one BYTES tensor: `inputs` [n], one text each (JSON for a task whose inputs have parts), with the
protocol's parameters as the task's; or `request` [1], the canonical JSON body. The reply has `outputs` [n], one JSON
answer each, or `response` [1], the body as the scoring script wrote it.
"""

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from local_runner.errors import ModelNotServed, served_as
from scoring.errors import InternalError, InvalidInput, InvalidJson, InvalidParameter, MiiAzureError
from scoring.host_api import Deployment, read_json

PREFIX = "/v2"
VERSION = "1"
DATATYPE = "BYTES"
# (name, shape) of a model's inputs and outputs; -1 is any length.
INPUTS = (("inputs", -1), ("request", 1))
OUTPUTS = (("outputs", -1), ("response", 1))
_OUTPUT_OF = {"inputs": "outputs", "request": "response"}
_MOST_DIMENSIONS = 8
#: Parameters of the protocol's own clients, and the values of each that ask for nothing.
_IDLE = {
    "sequence_id": (0, ""),
    "sequence_start": (False,),
    "sequence_end": (False,),
    "priority": (0,),
    "timeout": (0,),
}
# Tasks whose inputs have parts, and the JSON type of such an input.
_STRUCTURED: dict[str, type | tuple[type, ...]] = {
    "question-answering": dict,
    "conversational": list,
    "text-classification": dict,
    "text-ranking": (dict, list),
    "sentence-similarity": dict,
}


@dataclass(frozen=True)
class Inference:
    """Contents of a ModelInfer call."""

    tensors: dict[str, list[bytes]]
    parameters: dict[str, Any] = field(default_factory=dict)
    wanted: tuple[str, ...] = ()  # names of requested outputs; empty means all

    @property
    def source(self) -> str:
        """Name of the one input tensor."""
        return next(iter(self.tensors))


def error_body(error: MiiAzureError) -> dict[str, Any]:
    """Error body for a REST client of the protocol: `error` is a sentence; the other fields stand beside it."""
    told = error.to_dict()["error"]
    return {"error": told.pop("message"), **told}


def check_model(name: str, version: str, served: Sequence[str]) -> None:
    """Raise ModelNotServed unless `name` is one of this runner's and `version` that of its model."""
    if name not in served:
        raise ModelNotServed(f"No model {name!r} here.", served_as(served), where="model_name")
    if version not in ("", VERSION):
        raise ModelNotServed(
            f"No version {version!r} of {name!r} here.", f"Its only version is {VERSION!r}.", "model_version"
        )


def model_metadata(deployment: Deployment, name: str) -> dict[str, Any]:
    """Answer to ModelMetadata over either protocol, by the name that was asked for."""

    def tensors(named: Sequence[tuple[str, int]]) -> list[dict[str, Any]]:
        return [{"name": name, "datatype": DATATYPE, "shape": [length]} for name, length in named]

    return {
        "name": name,
        "versions": [VERSION],
        "platform": f"mii-azure_{deployment.task}",
        "inputs": tensors(INPUTS),
        "outputs": tensors(OUTPUTS),
    }


def unpack(raw: bytes) -> list[bytes]:
    """Elements of a raw BYTES tensor: each a 4-byte little-endian length and that many bytes."""
    elements, at = [], 0
    while at < len(raw):
        if at + 4 > len(raw):
            raise InvalidInput("A raw BYTES tensor ends inside a length.", where="raw_input_contents")
        (length,) = struct.unpack_from("<I", raw, at)
        at += 4
        if at + length > len(raw):
            raise InvalidInput("A raw BYTES tensor ends inside an element.", where="raw_input_contents")
        elements.append(raw[at : at + length])
        at += length
    return elements


def pack(elements: Sequence[bytes]) -> bytes:
    """The inverse of `unpack`."""
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


def check_tensor(name: str, datatype: str, shape: Sequence[int], elements: Sequence[bytes]) -> None:
    """Raise InvalidInput unless the tensor is BYTES and has as many elements as its shape says."""
    where = f"inputs[{name[:80]}]"
    if datatype != DATATYPE:
        raise InvalidInput(f"Tensor {name[:80]!r} is {datatype[:80] or 'untyped'}.", f"Send {DATATYPE}.", where)
    if not _counts(shape, len(elements)) or not elements:
        raise InvalidInput(
            f"Tensor {name[:80]!r} has shape {str(list(shape[:8]))[:80]} and {len(elements)} elements.",
            "Send at least one element, and as many as the shape says.",
            where,
        )


def _counts(shape: Sequence[Any], count: int) -> bool:
    """True if the shape has `count` elements; shapes with more dimensions than are quick to multiply never do."""
    sizes = [size for size in shape[:_MOST_DIMENSIONS] if type(size) is int and 0 <= size <= count]
    return len(sizes) == len(shape) and math.prod(sizes) == count


def of_task(given: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of a request that are its task's; raises InvalidParameter for one of a sequence."""
    found = {name: value for name, value in given.items() if not _asks_nothing(name, value)}
    if sequence := next((name for name in found if name.startswith("sequence_")), ""):
        raise InvalidParameter(
            "Each request stands alone here; no sequence of them is known.",
            f"Leave out {sequence[:80]!r}, or send 0 or false.",
            f"parameters.{sequence[:80]}",
        )
    return found


def _asks_nothing(name: str, value: Any) -> bool:
    return any(type(value) is type(idle) and value == idle for idle in _IDLE.get(name, ()))


def to_raw(call: Inference, task: str) -> str:
    """Request body for the scoring script; raises InvalidInput or InvalidParameter."""
    if len(call.tensors) != 1 or call.source not in _OUTPUT_OF:
        raise InvalidInput(
            f"The request has the tensors {sorted(call.tensors)}.",
            "Send one: 'inputs' with a text per element, or 'request' with the canonical JSON.",
            "inputs",
        )
    output = _OUTPUT_OF[call.source]
    if call.wanted and output not in call.wanted:
        raise InvalidInput(
            f"Outputs {list(call.wanted)} were asked for.", f"{call.source!r} gives {output!r}.", "outputs"
        )
    texts = [_text(element) for element in call.tensors[call.source]]
    if call.source == "inputs":
        inputs = [_value(text, task) for text in texts]
        return json.dumps({"inputs": inputs, "parameters": call.parameters}, ensure_ascii=False)
    if len(texts) != 1:
        raise InvalidInput("'request' takes one element.", "Send a list in its JSON.", "inputs[request]")
    if call.parameters:
        raise InvalidParameter("'request' carries its own parameters.", "Put them into its JSON.", "parameters")
    return texts[0]


def from_answer(call: Inference, body: bytes) -> tuple[str, list[bytes]]:
    """Name and elements of the output tensor for the scoring script's answer."""
    if call.source == "request":
        return "response", [body]
    answers = json.loads(body)
    expected = len(call.tensors[call.source])
    if not isinstance(answers, list) or len(answers) != expected:
        raise InternalError(f"The scoring script did not give {expected} answers to {expected} inputs.")
    return "outputs", [json.dumps(answer, ensure_ascii=False).encode() for answer in answers]


def _text(element: bytes) -> str:
    try:
        return element.decode()
    except UnicodeDecodeError as error:
        raise InvalidInput(f"An element is not UTF-8: {error}.", where="inputs") from error


def _value(text: str, task: str) -> Any:
    """Text of an input, or its parsed JSON if the task's inputs have parts."""
    wanted = _STRUCTURED.get(task)
    if wanted is None or not text.lstrip().startswith(("{", "[")):
        return text
    try:
        value = read_json(text)
    except InvalidJson:
        return text
    return value if isinstance(value, wanted) else text
