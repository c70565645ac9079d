"""The Open Inference Protocol's tensors, apart from any socket."""

import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from local_runner.grpc import services
from local_runner.http.oip_bodies import read_inference
from local_runner.protocol import oip
from local_runner.protos import inference_pb2
from mii_azure.errors import ModelNotServed
from scoring.errors import InternalError, InvalidInput, InvalidParameter


@given(st.lists(st.binary()))
def test_raw_tensors_come_back(elements: list[bytes]) -> None:
    assert oip.unpack(oip.pack(elements)) == elements


@given(st.lists(st.binary(min_size=1), min_size=1), st.data())
def test_a_cut_raw_tensor_is_refused(elements: list[bytes], data: st.DataObject) -> None:
    raw = oip.pack(elements)
    whole = {len(oip.pack(elements[:count])) for count in range(len(elements) + 1)}
    cut = data.draw(st.integers(1, len(raw) - 1).filter(lambda at: at not in whole))
    with pytest.raises(InvalidInput, match="ends inside"):
        oip.unpack(raw[:cut])


@pytest.mark.parametrize(
    ("task", "element", "value"),
    [
        ("fill-mask", '{"a": 1}', '{"a": 1}'),
        ("fill-mask", "[1]", "[1]"),
        ("question-answering", '{"question": "q", "context": "c"}', {"question": "q", "context": "c"}),
        ("question-answering", "[1]", "[1]"),
        ("conversational", '[{"role": "user", "content": "ü"}]', [{"role": "user", "content": "ü"}]),
        ("text-classification", '{"text": "a", "text_pair": "b"}', {"text": "a", "text_pair": "b"}),
        ("text-classification", "{not json", "{not json"),
    ],
)
def test_json_counts_where_a_tasks_inputs_have_parts(task: str, element: str, value: object) -> None:
    call = oip.Inference({"inputs": [element.encode()]}, {"top_k": 2})
    assert json.loads(oip.to_raw(call, task)) == {"inputs": [value], "parameters": {"top_k": 2}}


def test_the_request_tensor_is_the_body_itself() -> None:
    call = oip.Inference({"request": [b'{"inputs":  "x"}']})
    assert oip.to_raw(call, "fill-mask") == '{"inputs":  "x"}'
    assert oip.from_answer(call, b'{"a": 1}') == ("response", [b'{"a": 1}'])


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (oip.Inference({}), InvalidInput, "the tensors"),
        (oip.Inference({"x": [b""]}), InvalidInput, "'x'"),
        (oip.Inference({"inputs": [b""], "request": [b""]}), InvalidInput, "the tensors"),
        (oip.Inference({"inputs": [b"\xff"]}), InvalidInput, "not UTF-8"),
        (oip.Inference({"inputs": [b"a"]}, wanted=("scores",)), InvalidInput, "'scores'"),
        (oip.Inference({"request": [b"a", b"b"]}), InvalidInput, "one element"),
        (oip.Inference({"request": [b"a"]}, {"k": 1}), InvalidParameter, "its own parameters"),
    ],
)
def test_what_cannot_be_a_request_is_refused(call: oip.Inference, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        oip.to_raw(call, "fill-mask")


@pytest.mark.parametrize(("datatype", "shape"), [("FP32", [1]), ("", [1]), ("BYTES", [2]), ("BYTES", [1, 0])])
def test_tensors_are_what_they_say(datatype: str, shape: list[int]) -> None:
    with pytest.raises(InvalidInput):
        oip.check_tensor("inputs", datatype, shape, [b"a"])


def test_answers_must_match_the_inputs() -> None:
    call = oip.Inference({"inputs": [b"a", b"b"]})
    assert oip.from_answer(call, b'[{"x": 1}, "\xc3\xbc"]') == ("outputs", [b'{"x": 1}', '"ü"'.encode()])
    with pytest.raises(InternalError):
        oip.from_answer(call, b"[1]")


@pytest.mark.parametrize(("name", "version"), [("other", ""), ("mine", "2")])
def test_another_model_is_not_served(name: str, version: str) -> None:
    oip.check_model("mine", "1", ("other", "mine"))
    with pytest.raises(ModelNotServed):
        oip.check_model(name, version, ("mine",))


def test_what_clients_send_of_no_sequence_asks_nothing() -> None:
    idle = {"sequence_id": 0, "sequence_start": False, "sequence_end": False, "priority": 0, "timeout": 0}
    assert oip.of_task(idle | {"top_k": 2}) == {"top_k": 2}
    assert oip.of_task({"sequence_id": "", "priority": 3, "k": 0}) == {"priority": 3, "k": 0}
    assert oip.of_task({"priority": False, "timeout": 0.0}) == {"priority": False, "timeout": 0.0}


@pytest.mark.parametrize("asked", [{"sequence_id": 7}, {"sequence_id": "a"}, {"sequence_start": True}], ids=str)
def test_sequences_are_refused(asked: dict[str, object]) -> None:
    with pytest.raises(InvalidParameter, match="stands alone") as caught:
        oip.of_task(asked)
    assert caught.value.where == f"parameters.{next(iter(asked))}"


@pytest.mark.parametrize("sent", [{"sequence_id": 0}, {"sequence_id": 3}], ids=str)
def test_both_encodings_read_sequences_alike(sent: dict[str, int]) -> None:
    tensor = {"name": "inputs", "datatype": "BYTES", "shape": [1], "data": ["a"]}
    body = json.dumps({"inputs": [tensor], "parameters": sent}).encode()
    message = inference_pb2.ModelInferRequest(model_name="m")
    message.inputs.add(name="inputs", datatype="BYTES", shape=[1]).contents.bytes_contents.append(b"a")
    message.parameters["sequence_id"].int64_param = sent["sequence_id"]
    ways: list[Callable[[], oip.Inference]] = [
        lambda: read_inference(body, None)[1],
        lambda: services._inference(message),
    ]
    for read in ways:
        if sent["sequence_id"]:
            with pytest.raises(InvalidParameter, match="sequence_id"):
                read()
        else:
            assert read().parameters == {}
