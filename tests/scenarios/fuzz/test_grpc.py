"""Every gRPC call: messages of any content, and bytes that are no message, over a socket."""

import json
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from hypothesis import strategies as st

from local_runner.process.launch import LOOPBACK, Runner
from local_runner.protocol import errors, oip
from local_runner.protos import inference_pb2 as pb
from local_runner.protos import inference_pb2_grpc, scoring_pb2, scoring_pb2_grpc
from tests.scenarios.fuzz.conftest import ASK, DEADLINE_S, NAME, Tally, sizes
from tests.scenarios.fuzz.payloads import bodies

#: What a server that is well may answer; INTERNAL and UNKNOWN are its own failures.
SOUND = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED", "UNAVAILABLE", "DEADLINE_EXCEEDED"}

WORDS = st.sampled_from(["", NAME, "inputs", "request", "outputs", "response", "BYTES", "FP32", "1"]) | st.text(
    max_size=8
)
INT64 = st.integers(-2, 4) | st.integers(-(2**63), 2**63 - 1)
ELEMENTS = st.sampled_from([b"a", b"", b"The king", b"\xff", b'{"inputs": "a"}', b"[]", b"{"]) | st.binary(max_size=20)


def parameter() -> st.SearchStrategy[Any]:
    values = {
        "bool_param": st.booleans(),
        "int64_param": INT64,
        "string_param": st.text(max_size=8),
        "double_param": st.floats(),
        "uint64_param": st.integers(0, 2**64 - 1),
    }
    return st.one_of(st.just(pb.InferParameter()), *[st.builds(pb.InferParameter, **{k: v}) for k, v in values.items()])


def contents() -> st.SearchStrategy[Any]:
    small, floats = st.integers(0, 2**31 - 1), st.floats(width=32)
    return st.builds(
        pb.InferTensorContents,
        bytes_contents=st.lists(ELEMENTS, max_size=3),
        int_contents=st.lists(small, max_size=1),
        uint64_contents=st.lists(small, max_size=1),
        fp32_contents=st.lists(floats, max_size=1),
        bool_contents=st.lists(st.booleans(), max_size=1),
    )


def tensor() -> st.SearchStrategy[Any]:
    likely = st.builds(
        lambda name, elements: pb.ModelInferRequest.InferInputTensor(
            name=name,
            datatype="BYTES",
            shape=[len(elements)],
            contents=pb.InferTensorContents(bytes_contents=elements),
        ),
        st.sampled_from(["inputs", "request"]),
        st.lists(ELEMENTS, min_size=1, max_size=3),
    )
    any_one = st.builds(
        pb.ModelInferRequest.InferInputTensor,
        name=WORDS,
        datatype=WORDS,
        shape=st.lists(INT64, max_size=3),
        contents=contents(),
        parameters=st.dictionaries(WORDS, parameter(), max_size=1),
    )
    return likely | any_one


NAMES = ["max_new_tokens", "stop", "seed", "temperature", "top_k", "do_sample", "num_return_sequences"]
NAMES += ["guided_regex", "guided_grammar", "guided_json", "guided_choice", "adapter"]


def inference() -> st.SearchStrategy[Any]:
    packed = st.builds(oip.pack, st.lists(ELEMENTS, max_size=3))
    short = st.integers(1, 4).map(lambda count: {"max_new_tokens": pb.InferParameter(int64_param=count)})
    likely = st.builds(
        pb.ModelInferRequest,
        model_name=st.just(NAME),
        inputs=st.lists(tensor(), min_size=1, max_size=1),
        parameters=short,
    )
    return likely | st.builds(
        pb.ModelInferRequest,
        model_name=st.sampled_from([NAME, NAME, NAME, NAME, "other", ""]) | WORDS,
        model_version=st.sampled_from(["", "", "", "1", "2"]),
        id=st.text(max_size=5),
        inputs=st.lists(tensor(), max_size=2),
        outputs=st.lists(st.builds(pb.ModelInferRequest.InferRequestedOutputTensor, name=WORDS), max_size=1),
        parameters=st.dictionaries(st.sampled_from(NAMES) | WORDS, parameter(), max_size=2),
        raw_input_contents=st.just([]) | st.lists(packed | st.binary(max_size=12), max_size=2),
    )


@pytest.fixture
def channel(server: Runner) -> Iterator[grpc.Channel]:
    options = [("grpc.max_receive_message_length", -1), ("grpc.enable_http_proxy", 0)]
    with grpc.insecure_channel(f"{LOOPBACK}:{server.grpc_port}", options) as opened:
        yield opened


def status(call: Any, sent: Any, ours: bool = True) -> str:
    """The status of a call, which has to be sound; `ours`: an error carries its JSON body."""
    try:
        call()
        return "OK"
    except grpc.RpcError as error:
        told = error
    code, trailing = told.code().name, dict(told.trailing_metadata() or ())
    assert code in SOUND, (code, told.details(), sent)
    assert "Traceback" not in (told.details() or "")
    if ours:
        body = json.loads(trailing[errors.ERROR_KEY])["error"]
        assert told.details() and body["code"] and body["message"], (told, sent)
    return code


@sizes(40, 2500)
def test_any_inference(channel: grpc.Channel, tally: Tally, count: int) -> None:
    stub = inference_pb2_grpc.GRPCInferenceServiceStub(channel)
    found = set()

    def check(request: Any) -> None:
        found.add(status(lambda: stub.ModelInfer(request, timeout=DEADLINE_S), request))

    tally.run("ModelInfer", count, inference(), check)
    assert {"OK", "INVALID_ARGUMENT", "NOT_FOUND"} <= found


@sizes(25, 1200)
def test_any_text_scored_and_streamed(channel: grpc.Channel, tally: Tally, count: int) -> None:
    stub = scoring_pb2_grpc.ScoringStub(channel)

    def check(sent: tuple[str, bool]) -> None:
        request = scoring_pb2.ScoreRequest(json=sent[0].encode(errors="replace").decode())
        if sent[1]:
            status(lambda: list(stub.ScoreStream(request, timeout=DEADLINE_S)), sent)
        else:
            status(lambda: stub.Score(request, timeout=DEADLINE_S), sent)

    tally.run("Score and ScoreStream", count, st.tuples(bodies("text-generation"), st.booleans()), check)


METHODS = {
    "/mii_azure.v1.Scoring/Score": False,
    "/mii_azure.v1.Scoring/ScoreStream": True,
    "/mii_azure.v1.Scoring/Metadata": False,
    "/inference.GRPCInferenceService/ModelInfer": False,
    "/inference.GRPCInferenceService/ModelReady": False,
    "/inference.GRPCInferenceService/ModelMetadata": False,
    "/inference.GRPCInferenceService/ServerMetadata": False,
    "/inference.GRPCInferenceService/ServerLive": False,
    "/inference.GRPCInferenceService/ServerReady": False,
    "/grpc.health.v1.Health/Check": False,
    "/grpc.health.v1.Health/Watch": True,
}


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """Bytes of a message, cut or changed somewhere, or any bytes."""
    whole = draw(inference() | st.just(scoring_pb2.ScoreRequest(json=json.dumps(ASK)))).SerializeToString()
    how = draw(st.sampled_from(["cut", "cut", "change", "insert", "noise", "whole"]))
    at = draw(st.integers(0, max(0, len(whole) - 1)))
    if how == "change" and whole:
        return whole[:at] + bytes([draw(st.integers(0, 255))]) + whole[at + 1 :]
    if how == "insert":
        return whole[:at] + draw(st.binary(min_size=1, max_size=4)) + whole[at:]
    return {"cut": whole[:at], "noise": draw(st.binary(max_size=30))}.get(how, whole)


@sizes(50, 2000)
def test_bytes_that_are_no_message(channel: grpc.Channel, tally: Tally, count: int) -> None:
    found = set()

    def check(sent: tuple[str, bytes]) -> None:
        method, data = sent
        ours = not method.startswith("/grpc.")
        if METHODS[method]:
            call = channel.unary_stream(method)(data, timeout=DEADLINE_S)
            found.add(status(lambda: _first(call) if not ours else list(call), sent, ours))
        else:
            found.add(status(lambda: channel.unary_unary(method)(data, timeout=DEADLINE_S), sent, ours))

    tally.run("bytes of gRPC messages", count, st.tuples(st.sampled_from(sorted(METHODS)), messages()), check)
    assert {"OK", "INVALID_ARGUMENT"} <= found


def _first(call: Any) -> None:
    """A watch of health never ends by itself."""
    next(call)
    call.cancel()
