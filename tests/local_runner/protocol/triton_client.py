"""Triton's official clients at work: `... grpc|http PORT` prints, as JSON, what they were answered.

A process of its own: the client's messages and ours have the same names, and one process can hold them only once.
"""

import json
import sys
import threading
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

TEXTS = ["a quick brown fox", "a lazy dog"]


class Calls:
    """One client of either kind; they have the same methods."""

    def __init__(self, protocol: str, port: str) -> None:
        self.grpc = protocol == "grpc"
        self._module: Any = tritonclient.grpc if self.grpc else tritonclient.http
        # The binary extension of Triton's REST is not part of the protocol; gRPC has no other way.
        self._plain = {} if self.grpc else {"binary_data": False}
        self._json = {"as_json": True} if self.grpc else {}
        self.client = self._module.InferenceServerClient(f"127.0.0.1:{port}")

    def tensor(self, name: str, texts: list[str]) -> Any:
        made = self._module.InferInput(name, [len(texts)], "BYTES")
        made.set_data_from_numpy(np.array([text.encode() for text in texts], dtype=np.object_), **self._plain)
        return made

    def output(self, name: str) -> Any:
        return self._module.InferRequestedOutput(name, **self._plain)

    def states(self) -> Any:
        return [self.client.is_server_live(), self.client.is_server_ready(), self.client.is_model_ready("embed")]

    def metadata(self) -> Any:
        server = self.client.get_server_metadata(**self._json)
        model = self.client.get_model_metadata("embed", **self._json)
        return {"server": server["name"], "inputs": [[each["name"], each["datatype"]] for each in model["inputs"]]}

    def texts(self) -> Any:
        asked = self.client.infer("embed", [self.tensor("inputs", TEXTS)], outputs=[self.output("outputs")])
        return _answers(asked)

    def defaults(self) -> Any:
        """Return the answers of a call as the client makes it unless told otherwise: tensors in its binary form."""
        tensor = self._module.InferInput("inputs", [len(TEXTS), 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[text.encode()] for text in TEXTS], dtype=np.object_))
        return _answers(self.client.infer("embed", [tensor], model_version="1"))

    def versions(self) -> Any:
        return [self.client.is_model_ready("embed", version) for version in ("", "1")]

    def no_route(self) -> Any:
        if self.grpc:
            return "no such thing"
        try:
            self.client.get_model_config("embed")
        except InferenceServerException as error:
            return error.message()
        return "it was answered"

    def whole(self) -> Any:
        request = self.tensor("request", [json.dumps({"inputs": TEXTS})])
        asked = self.client.infer("embed", [request], outputs=[self.output("response")])
        return json.loads(asked.as_numpy("response")[0])

    def parameters(self) -> Any:
        asked = self.client.infer(
            "embed",
            [self.tensor("inputs", TEXTS)],
            outputs=[self.output("outputs")],
            request_id="seven",
            parameters={"normalize": False, "pooling": "max"},
        )
        return {"id": asked.get_response(**self._json)["id"], "answers": _answers(asked)}

    def at_once(self) -> Any:
        inputs, outputs = [self.tensor("inputs", TEXTS)], [self.output("outputs")]
        if not self.grpc:
            asked = [self.client.async_infer("embed", inputs, outputs=outputs) for _ in range(8)]
            return [_answers(each.get_result()) for each in asked]
        answered: list[Any] = []
        whole = threading.Semaphore(0)

        def take(result: Any, error: Any) -> None:
            answered.append(str(error) if error else _answers(result))
            whole.release()

        for _ in range(8):
            self.client.async_infer("embed", inputs, take, outputs=outputs)
        for _ in range(8):
            whole.acquire(timeout=60)
        return answered

    def another_model(self) -> Any:
        return self._refused("other", "inputs")

    def unknown_tensor(self) -> Any:
        return self._refused("embed", "nowhere")

    def _refused(self, model: str, tensor: str) -> str:
        try:
            self.client.infer(model, [self.tensor(tensor, TEXTS)])
        except InferenceServerException as error:
            return error.message()
        return "it was answered"


def _answers(result: Any) -> Any:
    return [json.loads(element) for element in result.as_numpy("outputs")]


if __name__ == "__main__":
    calls = Calls(*sys.argv[1:])
    asked = (
        "states",
        "metadata",
        "texts",
        "defaults",
        "versions",
        "no_route",
        "whole",
        "parameters",
        "at_once",
        "another_model",
        "unknown_tensor",
    )
    print(json.dumps({name: getattr(calls, name)() for name in asked}))
    calls.client.close()
