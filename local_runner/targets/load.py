"""Answers of a target and their latency under load; the same measurement inside a process and outside."""

import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle, islice

BUSY = 429  # the queue is full: the request was not answered, and may be sent again
_PAUSE_S = 0.05  # before it is
_MOST_PAUSES = 1200


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


def together(send: Callable[[str], TargetReply], bodies: Sequence[str], clients: int) -> list[list[TargetReply]]:
    """Send each body several times with `clients` in flight, in one shuffled order; returns each body's replies.

    There are at least twice as many requests as clients, so that each of them has company of several kinds. A request
    that finds the queue full is sent again, for a minute at most.
    """
    rounds = max(1, -(-2 * clients // len(bodies)))
    order = [number for number in range(len(bodies)) for _ in range(rounds)]
    random.Random(0).shuffle(order)  # noqa: S311  (an order, no secret)
    with ThreadPoolExecutor(clients) as pool:
        replies = list(pool.map(lambda number: _patiently(send, bodies[number]), order))
    gathered: list[list[TargetReply]] = [[] for _ in bodies]
    for number, reply in zip(order, replies, strict=True):
        gathered[number].append(reply)
    return gathered


def _patiently(send: Callable[[str], TargetReply], body: str) -> TargetReply:
    reply = send(body)
    for _ in range(_MOST_PAUSES):
        if reply.status != BUSY:
            break
        time.sleep(_PAUSE_S)
        reply = send(body)
    return reply
