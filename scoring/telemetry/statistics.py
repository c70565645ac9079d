"""Counts and times of the scoring package, and the phase of its start; standard library only.

`entry.statistics()` returns all of it; a host converts it for its monitoring.
"""

import bisect
import logging
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

logger = logging.getLogger("mii_azure.statistics")

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_TOKEN = (0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 5.0)
_ROWS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)
#: parse, encode and decode of a request; queue of a row; forward of a batch, or one step of a decoder's slots.
STAGES = ("parse", "encode", "queue", "forward", "decode")
#: Tokens of prompts, taken from cached prefixes, generated; drafted, and of these the right ones; slots given up.
COUNTERS = ("prompt_tokens", "cached_tokens", "generated_tokens", "drafted_tokens", "accepted_tokens", "preemptions")


class Histogram:
    """Counts values at or below each bound, and sums them."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0
        self._lock = threading.Lock()

    def add(self, value: float) -> None:
        with self._lock:
            self._counts[bisect.bisect_left(self._bounds, value)] += 1
            self._sum += value

    def add_all(self, values: Mapping[float, int]) -> None:
        """Count values, each as often as the mapping says."""
        with self._lock:
            for value, times in values.items():
                self._counts[bisect.bisect_left(self._bounds, value)] += times
                self._sum += value * times

    def to_dict(self) -> dict[str, Any]:
        """Return counts; `buckets` pairs each upper bound with the count up to it; the last bound is `+Inf`."""
        with self._lock:
            counts, total = list(self._counts), self._sum
        running, buckets = 0, []
        for bound, count in zip((*map(str, self._bounds), "+Inf"), counts, strict=True):
            running += count
            buckets.append([bound, running])
        return {"buckets": buckets, "sum": total}


class Timed(Protocol):
    """A row whose tokens are timed, by `perf_counter`; 0 for an event that has not happened."""

    queued: float
    token_at: float


class Statistics:
    """The counts of one engine; safe to use from any thread."""

    def __init__(self) -> None:
        self.stages = {name: Histogram(_SECONDS) for name in STAGES}
        self.batch = Histogram(_ROWS)
        self.first_token = Histogram(_SECONDS)  # from the queue to a row's first token
        self.next_token = Histogram(_TOKEN)  # between consecutive tokens of a row
        self.cache: dict[str, int] = {}  # of keys and values, in tokens: kv_tokens, kv_capacity; empty without slots
        self._counters = dict.fromkeys(COUNTERS, 0)
        self._lock = threading.Lock()

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Time the work inside the context, also if it fails."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.took(stage, time.perf_counter() - began)

    def took(self, stage: str, seconds: float) -> None:
        """Count the time that a stage took."""
        self.stages[stage].add(seconds)

    def tokens(self, rows: Iterable[Timed]) -> None:
        """Record that each of these rows just got its next token; rows that were never queued are left out."""
        now = time.perf_counter()
        before: list[float] = []
        for row in rows:
            if row.token_at:
                before.append(row.token_at)
            elif row.queued:
                self.first_token.add(now - row.queued)
            else:
                continue
            row.token_at = now
        if before:  # rows that advance together share the time of their last token
            self.next_token.add_all({now - each: times for each, times in Counter(before).items()})

    def count(self, name: str, amount: int) -> None:
        with self._lock:
            self._counters[name] += amount

    def to_dict(self) -> dict[str, Any]:
        with self._lock:
            counters = dict(self._counters)
        stages = {name: histogram.to_dict() for name, histogram in self.stages.items()}
        return {
            "stages": stages,
            "batch_rows": self.batch.to_dict(),
            "first_token": self.first_token.to_dict(),
            "next_token": self.next_token.to_dict(),
            **self.cache,
            **counters,
        }


class Phase:
    """Phase of the process: importing, loading, optimising, warming, ready; draining, failed."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.name = "importing"

    def enter(self, name: str) -> None:
        """Enter the next phase, and log how long this one took."""
        logger.info("%s took %.1f s; now %s", self.name, self.seconds(), name)
        self.name, self.began = name, time.monotonic()

    def seconds(self) -> float:
        """Seconds since this phase began."""
        return time.monotonic() - self.began


phase = Phase()
