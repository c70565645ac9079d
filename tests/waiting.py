"""Waits for a condition: how tests wait, instead of sleeping for as long as it should take."""

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

Found = TypeVar("Found")

#: Long enough for a machine that does six other things; a test that passes waits no longer than it has to.
PATIENCE_S = 60.0
_LOOK_S = 0.005


def until(found: Callable[[], Found], seconds: float = PATIENCE_S) -> Found:
    """What `found` gives once it gives something true; fails when it does not in time."""
    deadline = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < deadline, f"it did not come in {seconds:g} s: {value!r}"
        time.sleep(_LOOK_S)
    return value


async def until_async(found: Callable[[], Found], seconds: float = PATIENCE_S) -> Found:
    """The same, while the event loop goes on."""
    deadline = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < deadline, f"it did not come in {seconds:g} s: {value!r}"
        await asyncio.sleep(_LOOK_S)
    return value
