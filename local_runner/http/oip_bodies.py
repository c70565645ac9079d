"""Bodies of the Open Inference Protocol over REST, with the elements of a tensor in JSON or in Triton's binary form."""

from collections.abc import Iterator
from typing import Any

from local_runner.protocol import oip
from scoring.errors import InvalidInput, InvalidJson
from scoring.host_api import read_json

#: Header that says how many bytes of a body are JSON; the tensors' bytes follow.
JSON_BYTES = "inference-header-content-length"
#: Parameters of Triton's clients that ask for another encoding of the answer, which may always be JSON.
_ENCODING = ("binary_data_output",)
_HINT = 'Send {"inputs": [{"name": "inputs", "datatype": "BYTES", "shape": [1], "data": ["text"]}]}.'


def read_inference(body: bytes, json_bytes: str | None) -> tuple[dict[str, Any], oip.Inference]:
    """Read a body; returns its JSON and what it asks for. Raises InvalidJson and InvalidInput."""
    count = len(body) if json_bytes is None else int(json_bytes) if json_bytes.isdigit() else -1
    if not 0 <= count <= len(body):
        raise InvalidInput(f"{JSON_BYTES} does not count bytes of the body.", "It is the size of its JSON.", JSON_BYTES)
    try:
        sent = read_json(body[:count].decode())
    except UnicodeDecodeError as error:
        raise InvalidJson(f"The body is not UTF-8: {error}.") from error
    if not isinstance(sent, dict):
        raise InvalidInput("The body is not a JSON object.", _HINT)
    try:
        return sent, _inference(sent, body[count:])
    except (KeyError, TypeError, AttributeError) as error:
        raise InvalidInput("The body is not an inference request.", _HINT, "inputs") from error


def _inference(sent: dict[str, Any], binary: bytes) -> oip.Inference:
    tensors: dict[str, list[bytes]] = {}
    for tensor in sent["inputs"]:
        size = dict(_typed(tensor.get("parameters") or {}, dict)).get("binary_data_size")
        if size is None:
            elements = [text.encode() for text in _flat(_typed(tensor["data"], list))]
        else:
            raw, binary = _cut(binary, size)
            elements = oip.unpack(raw)
        name = _typed(tensor["name"], str)
        oip.check_tensor(name, _typed(tensor["datatype"], str), _typed(tensor["shape"], list), elements)
        tensors[name] = elements
    if binary:
        raise InvalidInput("Bytes follow the JSON that no tensor takes.", "Give binary_data_size.", "inputs")
    given = dict(_typed(sent.get("parameters") or {}, dict))
    parameters = oip.of_task({name: value for name, value in given.items() if name not in _ENCODING})
    wanted = tuple(_typed(output["name"], str) for output in sent.get("outputs") or ())
    _typed(sent.get("id", ""), str)
    return oip.Inference(tensors, parameters, wanted)


def _cut(binary: bytes, size: Any) -> tuple[bytes, bytes]:
    if type(size) is not int or not 0 <= size <= len(binary):
        raise InvalidInput(f"binary_data_size is {str(size)[:20]}; {len(binary)} bytes follow.", where="inputs")
    return binary[:size], binary[size:]


def _flat(data: list[Any]) -> Iterator[str]:
    """Elements of data that may be nested as its shape is."""
    for each in data:
        if isinstance(each, list):
            yield from _flat(each)
        else:
            yield _typed(each, str)


def infer_response(model: str, sent: dict[str, Any], name: str, elements: list[bytes]) -> dict[str, Any]:
    """Answer to a request, with the output's elements in JSON."""
    data = [element.decode() for element in elements]
    output = {"name": name, "datatype": oip.DATATYPE, "shape": [len(data)], "data": data}
    response = {"model_name": model, "model_version": oip.VERSION, "outputs": [output]}
    return {**response, "id": sent["id"]} if "id" in sent else response


def _typed(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError(kind.__name__)
    return value
