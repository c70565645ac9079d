"""The load generator of `make peers`, against the stub runner: what it counts is what was answered."""

import json

from benchmarks.peers import load
from local_runner.process.launch import Runner

BODIES = [json.dumps({"inputs": text}) for text in ("a", "b", "c")]


async def test_it_counts_answers_over_http(runner: Runner) -> None:
    told = await load.run("http", runner.http_port, BODIES, clients=3, seconds=0.3)
    assert len(told["latencies"]) >= 3
    assert told["refused"] == []
    assert 0.3 <= told["elapsed"] < 5
    assert sum(told["latencies"]) <= 3 * told["elapsed"]


async def test_it_counts_answers_over_grpc(runner: Runner) -> None:
    told = await load.run("grpc", runner.grpc_port, BODIES, clients=3, seconds=0.3)
    assert len(told["latencies"]) >= 3
    assert told["refused"] == []


async def test_refusals_are_no_answers(runner: Runner) -> None:
    bad = [json.dumps({"inputs": "status:400"})]
    for protocol, port in (("http", runner.http_port), ("grpc", runner.grpc_port)):
        told = await load.run(protocol, port, bad, clients=1, seconds=0.1)
        assert told["latencies"] == []
        assert "told to refuse" in told["refused"][0]
