"""The gRPC services over a real socket, through generated stubs."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from local_runner.host.host import PAYLOAD_SLACK
from local_runner.process.launch import Runner
from local_runner.protocol import errors, oip
from local_runner.protos import inference_pb2, inference_pb2_grpc, scoring_pb2, scoring_pb2_grpc
from tests.local_runner.conftest import MAX_PAYLOAD
from tests.waiting import until

Code = grpc.StatusCode
Status = health_pb2.HealthCheckResponse
# What tritonclient 2.73.0 sends for a two-text call with one parameter of each kind, and reads as a reply.
TRITON_REQUEST = bytes.fromhex(
    "0a046563686f1201311a013722070a01611202080122100a0162120b10fdffffffffffffffff0122080a016312031a0173220e0a0164120921"
    "000000000000e03f2a120a06696e70757473120542595445531a010232090a076f7574707574733a0b0200000068690100000078"
)
TRITON_REPLY = bytes.fromhex("0a046563686f1201311a01372a190a076f757470757473120542595445531a01012a0442027b7d")


@pytest.fixture(scope="module")
def channel(runner: Runner) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{runner.grpc_port}") as opened:
        yield opened


@pytest.fixture(scope="module")
def score(channel: grpc.Channel) -> Callable[[str], str]:
    stub = scoring_pb2_grpc.ScoringStub(channel)
    return lambda raw: stub.Score(scoring_pb2.ScoreRequest(json=raw), timeout=10).json


@pytest.fixture(scope="module")
def protocol(channel: grpc.Channel) -> Any:
    return inference_pb2_grpc.GRPCInferenceServiceStub(channel)


def refused(call: Callable[[], object]) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """The status, trailing metadata and error body of a call that must fail."""
    with pytest.raises(grpc.RpcError) as raised:
        call()
    trailing = dict(raised.value.trailing_metadata())
    return raised.value, trailing, json.loads(trailing[errors.ERROR_KEY])["error"]


def test_score_gives_the_bytes_of_the_script(score: Callable[[str], str]) -> None:
    assert score('{"inputs": "straße \\u00fc"}') == '{"echo": "STRASSE \\u00dc"}'


def test_a_failure_is_a_status_with_its_body(score: Callable[[str], str]) -> None:
    error, trailing, body = refused(lambda: score('{"inputs": "status:400"}'))
    assert (error.code(), error.details()) == (Code.INVALID_ARGUMENT, "The stub was told to refuse: ü.")
    assert trailing[errors.STATUS_KEY] == "400"
    assert body == {
        "code": "invalid_input",
        "message": "The stub was told to refuse: ü.",
        "hint": "Ask for something else.",
        "where": "inputs[0]",
    }


def test_overload_says_when_to_come_back(score: Callable[[str], str]) -> None:
    error, trailing, body = refused(lambda: score('{"inputs": "status:429"}'))
    assert (error.code(), body["code"]) == (Code.RESOURCE_EXHAUSTED, "overloaded")
    assert trailing["retry-after"] == "7"


def test_a_crash_tells_an_id_and_nothing_else(score: Callable[[str], str], runner: Runner) -> None:
    error, _, body = refused(lambda: score('{"inputs": "crash"}'))
    assert (error.code(), body["code"]) == (Code.INTERNAL, "internal")
    number = body["message"].rpartition("id ")[2].rstrip(").")
    log = runner.log.read_text()
    assert f"request {number} failed" in log
    assert "secret internals" in log
    assert "secret" not in str(error)


def test_a_payload_over_the_limit(score: Callable[[str], str]) -> None:
    error, _, body = refused(lambda: score(json.dumps({"inputs": "x" * MAX_PAYLOAD})))
    assert (error.code(), body["code"]) == (Code.RESOURCE_EXHAUSTED, "payload_too_large")
    with pytest.raises(grpc.RpcError) as raised:
        score(json.dumps({"inputs": "x" * (MAX_PAYLOAD + PAYLOAD_SLACK)}))
    assert errors.reply_of(raised.value, "here", 1)[0] == 413


def test_a_deadline_is_kept_and_the_runner_lives_on(channel: grpc.Channel, score: Callable[[str], str]) -> None:
    stub = scoring_pb2_grpc.ScoringStub(channel)
    with pytest.raises(grpc.RpcError) as raised:
        stub.Score(scoring_pb2.ScoreRequest(json='{"inputs": "until:/never"}'), timeout=0.2)
    assert raised.value.code() is Code.DEADLINE_EXCEEDED
    assert score('{"inputs": "a"}') == '{"echo": "A"}'


def test_streams_arrive_piece_by_piece(channel: grpc.Channel, tmp_path: Path) -> None:
    stub = scoring_pb2_grpc.ScoringStub(channel)
    gate = tmp_path / "gate"
    request = scoring_pb2.ScoreRequest(json=json.dumps({"inputs": f"a until:{gate}", "stream": True}))
    call = stub.ScoreStream(request, timeout=20)
    assert next(call).json == '{"token": {"text": "A"}}'
    gate.touch()
    assert json.loads(next(call).json)["token"]["text"].startswith("UNTIL")
    assert list(call) == []


def test_a_stream_that_breaks_off_ends_with_the_error(channel: grpc.Channel) -> None:
    stub = scoring_pb2_grpc.ScoringStub(channel)
    events: list[str] = []

    def read() -> None:
        request = scoring_pb2.ScoreRequest(json='{"inputs": "a fail", "stream": true}')
        events.extend(event.json for event in stub.ScoreStream(request, timeout=10))

    error, _, body = refused(read)
    assert events == ['{"token": {"text": "A"}}']
    assert (error.code(), body["message"]) == (Code.RESOURCE_EXHAUSTED, "The stub broke off.")


def test_leaving_a_stream_stops_the_work(channel: grpc.Channel) -> None:
    stub = scoring_pb2_grpc.ScoringStub(channel)
    endless = "a " * 90_000
    assert not json.loads(stub.Metadata(scoring_pb2.MetadataRequest()).json)["streams_closed"]
    call = stub.ScoreStream(scoring_pb2.ScoreRequest(json=json.dumps({"inputs": endless, "stream": True})))
    next(call)
    call.cancel()
    until(lambda: json.loads(stub.Metadata(scoring_pb2.MetadataRequest()).json)["streams_closed"])


def test_a_unary_call_does_not_stream(score: Callable[[str], str], channel: grpc.Channel) -> None:
    error, _, body = refused(lambda: score('{"inputs": "a", "stream": true}'))
    assert (error.code(), body["where"]) == (Code.INVALID_ARGUMENT, "stream")
    stub = scoring_pb2_grpc.ScoringStub(channel)
    events = list(stub.ScoreStream(scoring_pb2.ScoreRequest(json='{"inputs": "a"}')))
    assert [event.json for event in events] == ['{"echo": "A"}']


def test_the_bundles_own_code_and_model_are_served(channel: grpc.Channel, bundle: Path) -> None:
    facts = json.loads(scoring_pb2_grpc.ScoringStub(channel).Metadata(scoring_pb2.MetadataRequest()).json)
    assert facts["scoring"] == str(bundle / "code" / "scoring" / "__init__.py")
    assert facts["model_dir"] == str(bundle / "model")


def test_health_names_every_service(channel: grpc.Channel) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    for service in ("", "mii_azure.v1.Scoring", "inference.GRPCInferenceService"):
        assert stub.Check(health_pb2.HealthCheckRequest(service=service)).status == Status.SERVING
    with pytest.raises(grpc.RpcError) as raised:
        stub.Check(health_pb2.HealthCheckRequest(service="nonsense"))
    assert raised.value.code() is Code.NOT_FOUND


def test_reflection_describes_the_services(channel: grpc.Channel) -> None:
    database = ProtoReflectionDescriptorDatabase(channel)
    assert set(database.get_services()) == {
        "mii_azure.v1.Scoring",
        "inference.GRPCInferenceService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    service = DescriptorPool(database).FindServiceByName("inference.GRPCInferenceService")
    assert len(service.methods) == 6


def test_the_protocols_state_and_metadata(protocol: Any) -> None:
    assert protocol.ServerLive(inference_pb2.ServerLiveRequest()).live
    assert protocol.ServerReady(inference_pb2.ServerReadyRequest()).ready
    assert protocol.ModelReady(inference_pb2.ModelReadyRequest(name="echo")).ready
    assert protocol.ServerMetadata(inference_pb2.ServerMetadataRequest()).name == "mii-azure"
    facts = protocol.ModelMetadata(inference_pb2.ModelMetadataRequest(name="echo", version="1"))
    assert (facts.name, list(facts.versions)) == ("echo", ["1"])
    assert [(tensor.name, list(tensor.shape)) for tensor in facts.inputs] == [("inputs", [-1]), ("request", [1])]
    for call in (
        lambda: protocol.ModelReady(inference_pb2.ModelReadyRequest(name="other")),
        lambda: protocol.ModelMetadata(inference_pb2.ModelMetadataRequest(name="other")),
        lambda: protocol.ModelInfer(inference_pb2.ModelInferRequest(model_name="other")),
    ):
        error, _, body = refused(call)
        assert (error.code(), body["code"]) == (Code.NOT_FOUND, "model_not_served")


def test_infer_answers_a_triton_clients_raw_request(protocol: Any) -> None:
    reply = protocol.ModelInfer(inference_pb2.ModelInferRequest.FromString(TRITON_REQUEST))
    assert (reply.model_name, reply.model_version, reply.id) == ("echo", "1", "7")
    (output,) = reply.outputs
    assert (output.name, output.datatype, list(output.shape)) == ("outputs", "BYTES", [2])
    (raw,) = reply.raw_output_contents
    given = {"a": True, "b": -3, "c": "s", "d": 0.5}
    assert [json.loads(element) for element in oip.unpack(raw)] == [{"echo": "HI", **given}, {"echo": "X", **given}]


def test_a_reply_is_what_a_triton_client_reads() -> None:
    reply = inference_pb2.ModelInferResponse(model_name="echo", model_version="1", id="7")
    output = reply.outputs.add(name="outputs", datatype="BYTES", shape=[1])
    output.contents.bytes_contents.append(b"{}")
    assert reply.SerializeToString(deterministic=True) == TRITON_REPLY


def test_infer_answers_typed_contents_in_kind(protocol: Any) -> None:
    request = inference_pb2.ModelInferRequest(model_name="echo")
    tensor = request.inputs.add(name="request", datatype="BYTES", shape=[1])
    tensor.contents.bytes_contents.append(b'{"inputs": "a"}')
    reply = protocol.ModelInfer(request)
    assert not reply.raw_output_contents
    assert reply.outputs[0].name == "response"
    assert list(reply.outputs[0].contents.bytes_contents) == [b'{"echo": "A"}']


@pytest.mark.parametrize(
    ("inputs", "code"),
    [
        ([], "invalid_input"),
        ([("inputs", "FP32", [1], [b"a"])], "invalid_input"),
        ([("inputs", "BYTES", [3], [b"a"])], "invalid_input"),
        ([("request", "BYTES", [1], [b"{"])], "invalid_json"),
        ([("request", "BYTES", [1], [b'{"stream": true}'])], "invalid_parameter"),
        ([("inputs", "BYTES", [1], [b"status:400"])], "invalid_input"),
    ],
)
def test_infer_refuses(protocol: Any, inputs: list[tuple[str, str, list[int], list[bytes]]], code: str) -> None:
    request = inference_pb2.ModelInferRequest(model_name="echo")
    for name, datatype, shape, elements in inputs:
        tensor = request.inputs.add(name=name, datatype=datatype, shape=shape)
        tensor.contents.bytes_contents.extend(elements)
    error, _, body = refused(lambda: protocol.ModelInfer(request))
    assert (error.code(), body["code"]) == (Code.INVALID_ARGUMENT, code)
