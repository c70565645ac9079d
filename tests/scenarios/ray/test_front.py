"""The contracts of the runner, kept by replicas in a cluster: protocols, errors, scaling, drain, and what ends it."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from local_runner.client.client import Client
from local_runner.process import ready_file
from local_runner.protocol import oip
from local_runner.protos import inference_pb2, inference_pb2_grpc
from local_runner.replicas.ray import bundle_copy
from scoring.errors import InternalError, InvalidInput, Overloaded
from tests.local_runner.conftest import make_bundle
from tests.scenarios.ray.conftest import Front, TwoNodes, front, until

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600), pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ray")


@pytest.fixture(scope="module")
def served(cluster: TwoNodes, folder: Path) -> Iterator[Front]:
    """One replica of the stub, which grows to two past one request at a time."""
    scaling = ("--min-replicas", "1", "--max-replicas", "2", "--target-ongoing", "1", "--replica-cpus", "0.5")
    options = ("--ray-address", cluster.address, *scaling)
    with front(make_bundle(folder, "echo", "text-generation"), folder / "front", *options) as started:
        yield started.wait()


def score(served: Front, inputs: str, **more: object) -> httpx.Response:
    return httpx.post(f"{served.http}/score", json={"inputs": inputs, **more}, timeout=60, trust_env=False)


def test_grpc(served: Front) -> None:
    with Client(served.grpc) as client, grpc.insecure_channel(served.grpc) as channel:
        assert client.ready()
        assert client.query({"inputs": "a"}) == {"echo": "A"}
        assert [event["token"]["text"] for event in client.stream({"inputs": "a b"})] == ["A", "B"]
        assert client.metadata()["name"] == "echo"
        for inputs, error in (("status:400", InvalidInput), ("status:429", Overloaded), ("crash", InternalError)):
            with pytest.raises(error):
                client.query({"inputs": inputs})
        health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert health.status == health_pb2.HealthCheckResponse.SERVING
        tensor = {"name": "inputs", "datatype": oip.DATATYPE, "shape": [1], "contents": {"bytes_contents": [b"a"]}}
        asked = inference_pb2.ModelInferRequest(model_name="echo", inputs=[tensor])
        answer = inference_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(asked)
        assert json.loads(answer.outputs[0].contents.bytes_contents[0]) == {"echo": "A"}


def test_http(served: Front) -> None:
    assert score(served, "a").json() == {"echo": "A"}
    streamed = score(served, "a b", stream=True)
    assert streamed.headers["content-type"].startswith("text/event-stream")
    assert streamed.text.endswith("data: [DONE]\n\n")
    refused = score(served, "status:429")
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "7")
    assert score(served, "crash").json()["error"]["code"] == "internal"
    assert httpx.get(f"{served.http}/v2/models/echo/ready", trust_env=False).json()["ready"] is True
    assert httpx.get(f"{served.http}/readyz", trust_env=False).json()["replicas"]["running"] == 1
    assert served.metric('mii_azure_replicas{state="running"}') == 1


def test_a_client_that_leaves_its_stream_frees_the_replica(served: Front) -> None:
    with Client(served.grpc) as client:
        for event in client.stream({"inputs": "a until:/never"}):
            assert event == {"token": {"text": "A"}}
            break
        # The stub's generator is inside a wait that nothing ends; what is freed is the call.
        until(lambda: served.metric("mii_azure_in_flight") == 0, 10, "the front's count")


def test_a_head_that_is_not_there_is_told_at_once(tmp_path: Path) -> None:
    with front(make_bundle(tmp_path), tmp_path / "front", "--ray-address", "127.0.0.1:1") as failing:
        assert failing.process.wait(30) == 4
        assert "Nothing answers at 127.0.0.1:1" in failing.log.read_text()


def test_a_second_front_joins_the_first_and_leaves_it_running(cluster: TwoNodes, served: Front, folder: Path) -> None:
    with front(folder / "echo", folder / "second", "--ray-address", cluster.address) as second:
        second.wait()
        assert score(second, "a").json() == {"echo": "A"}
        assert second.stop() == 0
    assert score(served, "a").json() == {"echo": "A"}
    other = make_bundle(folder / "other", "echo", "fill-mask")
    with front(other, folder / "third", "--ray-address", cluster.address) as third:
        assert third.process.wait(30) == 4
        assert "serves a different bundle as echo" in third.log.read_text()
    assert score(served, "a").json() == {"echo": "A"}


def test_a_bundle_that_a_node_cannot_see_is_copied_to_it(cluster: TwoNodes, served: Front, folder: Path) -> None:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from local_runner.replicas.ray.cluster import NAMESPACE

    known = bundle_copy.reference(folder / "echo", "mii-azure-echo-desk")
    elsewhere = bundle_copy.Reference("/not/here", known.digest, known.desk)
    there = NodeAffinitySchedulingStrategy(cluster.node.node_id, soft=False)
    task = ray.remote(num_cpus=0, scheduling_strategy=there)(bundle_copy.locate)
    copy = ray.get(task.options(runtime_env={"env_vars": {"TMPDIR": str(folder)}}).remote(elsewhere, NAMESPACE))
    assert copy.is_relative_to(folder) and copy != folder / "echo"
    assert bundle_copy.reference(copy, known.desk).digest == known.digest


def test_more_requests_start_a_second_replica(cluster: TwoNodes, served: Front, folder: Path) -> None:
    gate = folder / "gate"
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(score, served, f"until:{gate}") for _ in range(4)]
        seconds = until(lambda: served.running() == 2, 45, "a second replica")
        gate.touch()
        assert [answer.result().status_code for answer in waiting] == [200] * 4
    print(f"second replica after {seconds:.1f} s")


def test_a_request_that_ends_every_replica_is_refused_and_the_service_comes_back(served: Front) -> None:
    answer = score(served, "exit")  # over HTTP, because the gRPC client would ask again by itself
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "replica_lost"
    until(lambda: served.running() >= 1 and score(served, "a").status_code == 200, 45, "a replica again")


def test_a_signal_drains(served: Front, folder: Path) -> None:
    gate = folder / "drained"
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(score, served, f"until:{gate}")
        until(lambda: served.metric("mii_azure_in_flight") == 1, 10, "the request")
        served.process.terminate()
        time.sleep(0.5)
        gate.touch()
        assert waiting.result().status_code == 200
    assert served.process.wait(30) == 0, served.log.read_text()
    assert not served.ready.exists()


@pytest.mark.parametrize(
    ("options", "code", "exit_code"),
    [(("--replica-cpus", "64", "--start-seconds", "1"), "cluster_too_small", 4), ((), "bundle_edited", 3)],
)
def test_what_keeps_replicas_from_starting_is_told(
    options: tuple[str, ...], code: str, exit_code: int, cluster: TwoNodes, tmp_path: Path
) -> None:
    bundle = make_bundle(tmp_path)
    (bundle / "model" / "config.json").write_text("{}")  # only a replica reads the model
    with front(bundle, tmp_path / "front", "--ray-address", cluster.address, *options) as failing:
        assert failing.process.wait(60) == exit_code, failing.log.read_text()
        assert ready_file.read(failing.ready)["error"]["code"] == code
        log = failing.log.read_text()
    assert "Traceback" not in log
