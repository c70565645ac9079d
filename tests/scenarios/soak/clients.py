"""What clients of the soak do: ask over every protocol, go away half-way, send what is wrong; each reply is checked."""

import json
import random
import uuid
from collections.abc import Callable
from typing import Any

import grpc
import httpx

from local_runner.process.launch import LOOPBACK
from local_runner.protocol import errors
from local_runner.protos import inference_pb2, inference_pb2_grpc, scoring_pb2, scoring_pb2_grpc
from local_runner.telemetry import logs
from tests.scenarios.soak.servers import APART, NAME, TOKENS, Watched, distance

TIMEOUT_S = 60.0
BAD = (
    "",
    "{",
    '{"inputs": []}',
    '{"inputs": "a", "parameters": {"unknown": 1}}',
    '{"inputs": {"x": [1]}}',
    '{"inputs": "' + "long " * 4000 + '"}',
    '{"inputs": NaN}',
    "[" * 500,
)


class Crossed(Exception):
    """A reply that belongs to another request, or to none."""


class Client:
    """One client of one server; `step` does one thing and says how it ended."""

    def __init__(self, server: Watched, seed: int) -> None:
        self._task, self._expected = server.task, server.expected
        self._random = random.Random(seed)
        self._http = httpx.Client(
            base_url=f"http://{LOOPBACK}:{server.runner.http_port}", trust_env=False, timeout=TIMEOUT_S
        )
        self._channel = grpc.insecure_channel(
            f"{LOOPBACK}:{server.runner.grpc_port}",
            [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)],
        )
        self._scoring = scoring_pb2_grpc.ScoringStub(self._channel)
        self._protocol = inference_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        streams = [self._events, self._grpc_stream, self._completion, self._gone_http, self._gone_grpc, self._late]
        embeddings = [self._embedding, self._embedding]
        more = {"text-generation": streams, "sentence-embeddings": embeddings}
        asks: list[Callable[[], str]] = [self._over_http, self._over_grpc, self._over_protocol]
        self._steps = [*asks, self._bad, self._bad_grpc, *more.get(self._task, [])]

    def step(self) -> str:
        """One request; raises Crossed where the reply is not its own."""
        return self._random.choice(self._steps)()

    def close(self) -> None:
        """Close both connections."""
        self._http.close()
        self._channel.close()

    # -- asking --------------------------------------------------------------------------------------------------------

    def _pick(self) -> tuple[str, dict[str, Any]]:
        """A text, and the request that it is sent in."""
        text = self._random.choice(list(self._expected))
        parameters: dict[str, Any] = {}
        if self._task == "text-generation":
            parameters = {"max_new_tokens": TOKENS, "return_full_text": False}
        if self._task == "text-classification":
            parameters = {"top_k": None}
        return text, {"inputs": text, "parameters": parameters}

    def _check(self, text: str, answer: Any) -> None:
        expected = self._expected[text]
        if self._task == "text-generation":
            right = answer[0]["generated_text"] == expected
        else:
            right = distance(answer, expected) < APART / 10
        if not right:
            owner = next((other for other, told in self._expected.items() if told == answer), "nobody")
            raise Crossed(f"{text!r} was answered {str(answer)[:200]}, which belongs to {owner!r}")

    def _over_http(self) -> str:
        text, body = self._pick()
        number = uuid.uuid4().hex
        reply = self._http.post("/score", json=body, headers={logs.HEADER: number})
        self._own(number, reply.headers.get(logs.HEADER))
        if reply.status_code == 200:
            self._check(text, reply.json())
        return f"HTTP {reply.status_code}"

    def _over_grpc(self) -> str:
        text, body = self._pick()
        number = uuid.uuid4().hex
        request = scoring_pb2.ScoreRequest(json=json.dumps(body))
        reply, call = self._scoring.Score.with_call(request, TIMEOUT_S, ((logs.HEADER, number),))
        self._own(number, dict(call.trailing_metadata()).get(logs.HEADER))
        self._check(text, json.loads(reply.json))
        return "gRPC OK"

    def _over_protocol(self) -> str:
        text, body = self._pick()
        number = uuid.uuid4().hex
        tensor = inference_pb2.ModelInferRequest.InferInputTensor(name="request", datatype="BYTES", shape=[1])
        tensor.contents.bytes_contents.append(json.dumps(body).encode())
        request = inference_pb2.ModelInferRequest(model_name=NAME, id=number, inputs=[tensor])
        reply = self._protocol.ModelInfer(request, TIMEOUT_S)
        self._own(number, reply.id)
        self._check(text, json.loads(reply.outputs[0].contents.bytes_contents[0]))
        return "gRPC OK"

    def _embedding(self) -> str:
        texts = [self._pick()[0] for _ in range(self._random.randint(1, 4))]
        reply = self._http.post("/v1/embeddings", json={"input": texts})
        if reply.status_code == 200:
            for text, entry in zip(texts, reply.json()["data"], strict=True):
                self._check(text, entry["embedding"])
        return f"HTTP {reply.status_code}"

    # -- streams -------------------------------------------------------------------------------------------------------

    def _events(self) -> str:
        text, body = self._pick()
        parser, events = errors.EventParser(), []
        with self._http.stream("POST", "/score", json={**body, "stream": True}) as reply:
            for chunk in reply.iter_bytes():
                events += list(parser.feed(chunk))
        self._check_events(text, events)
        return f"HTTP {reply.status_code}"

    def _grpc_stream(self) -> str:
        text, body = self._pick()
        request = scoring_pb2.ScoreRequest(json=json.dumps({**body, "stream": True}))
        self._check_events(text, [event.json for event in self._scoring.ScoreStream(request, TIMEOUT_S)])
        return "gRPC OK"

    def _check_events(self, text: str, events: list[str]) -> None:
        *pieces, last = map(json.loads, events)
        self._check(text, last["answer"])
        if "".join(piece["token"]["text"] for piece in pieces) != self._expected[text]:
            raise Crossed(f"the pieces of {text!r} are not its answer: {pieces}")

    def _completion(self) -> str:
        text, _ = self._pick()
        body = {"model": NAME, "prompt": text, "max_tokens": TOKENS, "stream": True}
        with self._http.stream("POST", "/v1/completions", json=body) as reply:
            data = [line.removeprefix("data: ") for line in reply.iter_lines() if line]
        if data[-1] != "[DONE]":
            raise Crossed(f"the stream of {text!r} ended with {data[-1]}")
        told = "".join(choice["text"] for event in data[:-1] for choice in json.loads(event)["choices"])
        self._check(text, [{"generated_text": told}])
        return f"HTTP {reply.status_code}"

    # -- going away, and being wrong -----------------------------------------------------------------------------------

    def _long(self) -> dict[str, Any]:
        return {"inputs": self._pick()[0], "parameters": {"max_new_tokens": 90, "ignore_eos": True}, "stream": True}

    def _gone_http(self) -> str:
        with self._http.stream("POST", "/score", json=self._long()) as reply:
            events = reply.iter_lines()
            for _ in range(self._random.randint(1, 4)):
                next(events)
        return "cancelled"

    def _gone_grpc(self) -> str:
        request = scoring_pb2.ScoreRequest(json=json.dumps(self._long()))
        call = self._scoring.ScoreStream(request, TIMEOUT_S)
        for _ in range(self._random.randint(0, 4)):
            next(call)
        call.cancel()
        return "cancelled"

    def _late(self) -> str:
        request = scoring_pb2.ScoreRequest(json=json.dumps(self._long()))
        try:
            list(self._scoring.ScoreStream(request, self._random.uniform(0.001, 0.05)))
        except grpc.RpcError as error:
            return f"gRPC {error.code().name}"
        return "gRPC OK"

    def _bad(self) -> str:
        reply = self._http.post("/score", content=self._random.choice(BAD))
        if reply.status_code != 400 or not reply.json()["error"]["code"]:
            raise Crossed(f"bad input was answered {reply.status_code} {reply.text[:200]}")
        return "HTTP 400"

    def _bad_grpc(self) -> str:
        try:
            self._scoring.Score(scoring_pb2.ScoreRequest(json=self._random.choice(BAD)), TIMEOUT_S)
        except grpc.RpcError as error:
            return f"gRPC {error.code().name}"
        raise Crossed("bad input was answered")

    @staticmethod
    def _own(sent: str, received: Any) -> None:
        if received != sent:
            raise Crossed(f"the reply to {sent} is that to {received}")
