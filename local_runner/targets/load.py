"""Answers of a target and their latency under load; the same measurement inside a process and outside."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle, islice


@dataclass(frozen=True)
class TargetReply:
    """Reply of a target: HTTP status, body, and seconds from sending to complete receipt."""

    status: int
    body: bytes
    seconds: float


@dataclass(frozen=True)
class Load:
    """Measured load; `seconds` holds each request's latency, in order of sending."""

    seconds: tuple[float, ...]
    statuses: tuple[int, ...]
    elapsed: float


def measure(send: Callable[[str], TargetReply], bodies: Sequence[str], requests: int, clients: int) -> Load:
    """Send `requests` requests, cycling through `bodies`, with `clients` in flight at a time."""
    sent = islice(cycle(bodies), requests)
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(lambda _: time.sleep(0.01), range(clients)))  # starting threads is not timed
        began = time.perf_counter()
        replies = list(pool.map(send, sent))
        elapsed = time.perf_counter() - began
    return Load(tuple(reply.seconds for reply in replies), tuple(reply.status for reply in replies), elapsed)
