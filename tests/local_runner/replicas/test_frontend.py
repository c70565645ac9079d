"""One front over either kind of replicas, none of which has started: what it refuses, says and counts."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from local_runner.errors import ReplicaLost, RunnerFailed
from local_runner.host.host import HostState
from local_runner.host.reload import Tuning
from local_runner.replicas.frontend import Frontend
from local_runner.replicas.local.options import ReplicaOptions
from local_runner.replicas.local.pool import LocalPool
from local_runner.replicas.pool import PendingRequest, ReplicaPool
from local_runner.replicas.ray.options import RayOptions
from local_runner.replicas.ray.pool import RayPool
from scoring.errors import NotReady

POOLS: dict[str, Callable[[Path], ReplicaPool]] = {
    "processes": lambda bundle: LocalPool(bundle, ReplicaOptions(2)),
    "ray": lambda bundle: RayPool(bundle, RayOptions(max_replicas=2)),
}


@pytest.fixture(params=POOLS)
async def pool(bundle: Path, request: pytest.FixtureRequest) -> AsyncIterator[ReplicaPool]:
    made = POOLS[request.param](bundle)
    yield made
    if isinstance(made, LocalPool):  # Ray's has nothing before its start
        await made.drain(0.0)


@pytest.mark.parametrize("state", [HostState.LOADING, HostState.READY])
async def test_without_a_replica_requests_are_refused_with_the_reason(
    state: HostState, bundle: Path, pool: ReplicaPool
) -> None:
    host = Frontend(bundle, pool)
    host.change(state)
    assert (host.ready, host.condition, host.statistics()["asked_again"]) == (False, HostState.LOADING, 0)
    with pytest.raises(NotReady) as refused:
        await host.score('{"inputs": "a"}', {})
    assert refused.value.message == f"No replica is ready: {pool.watch().message}."
    assert "starting" in refused.value.message or "0 importing, 1 importing" in refused.value.message
    assert "mii_azure_replicas" in host.metrics.expose().decode()


async def test_log_levels_change_everywhere_and_limits_where_replicas_take_them(
    bundle: Path, pool: ReplicaPool
) -> None:
    host = Frontend(bundle, pool)
    host.check(Tuning(log_level="debug", drain_seconds=1.0))
    if isinstance(pool, RayPool):
        with pytest.raises(RunnerFailed, match="queue_size cannot change in a Ray cluster"):
            host.check(Tuning(queue_size=1))
        return
    host.check(Tuning(queue_size=1))
    await host.tune(Tuning(queue_size=1))
    assert host.deployment.limits.queue_size == 1


@pytest.mark.parametrize("pool", ["processes"], indirect=True)
async def test_a_request_that_lost_its_last_replica_says_so(pool: ReplicaPool) -> None:
    with pytest.raises(ReplicaLost, match="The replica that held this request ended, and no other is ready"):
        await pool.submit(PendingRequest("{}", {}, ["0"]))
