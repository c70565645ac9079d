"""Ends of a process's doors: gRPC is stopped once where its budget is about to end, twice where it is not."""

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import pytest

from local_runner.doors import Doors


@pytest.mark.parametrize(("left", "stops"), [(0.0, []), (0.4, []), (30.0, [1.0])])
def test_no_two_stops_of_grpc_end_together(left: float, stops: list[float]) -> None:
    async def stopped() -> list[float]:
        told: list[float] = []

        async def stop(grace: float) -> None:
            told.append(grace)

        async def nothing(*of: Any) -> None: ...

        doors: Any = Doors.__new__(Doors)
        doors._grpc, doors._http = SimpleNamespace(stop=stop), SimpleNamespace(stopped=nothing)
        doors._stopping = asyncio.create_task(nothing())
        doors._watching = asyncio.create_task(nothing())
        await doors.stopped(time.monotonic() + left)
        return told

    assert asyncio.run(stopped()) == stops
