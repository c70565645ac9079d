"""What a target answers, and how long it takes to under load; the same measurement inside a process and outside."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle, islice


@dataclass(frozen=True)
class TargetReply:
    """One answer: HTTP status, body, and seconds from sending to having it whole."""

    status: int
    body: bytes
    seconds: float


@dataclass(frozen=True)
class Load:
    """One measured load; `seconds` holds each request's latency, in order of sending."""

    seconds: tuple[float, ...]
    statuses: tuple[int, ...]
    elapsed: float


def measure(send: Callable[[str], TargetReply], bodies: Sequence[str], requests: int, clients: int) -> Load:
    """Send `requests` requests, taking `bodies` in turn, with `clients` in flight at a time."""
    sent = islice(cycle(bodies), requests)
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(lambda _: time.sleep(0.01), range(clients)))  # threads are not started on the clock
        began = time.perf_counter()
        replies = list(pool.map(send, sent))
        elapsed = time.perf_counter() - began
    return Load(tuple(reply.seconds for reply in replies), tuple(reply.status for reply in replies), elapsed)
