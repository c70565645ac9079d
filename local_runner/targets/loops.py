"""Load on a target: a closed loop (clients that each wait for their answer) or an open one (requests a second).

In an open loop requests are sent when they are due, whether earlier ones were answered or not, and their times count
from when they were due: a server that falls behind cannot hide it by slowing its own clients down.
"""

import json
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from local_runner.targets.load import TargetReply

_MOST_AT_ONCE = 512  # threads of an open loop; a request that is due and has none waits for one


@dataclass(frozen=True)
class TimedReply:
    """One answered request: status, seconds to its end, seconds to its first event, and tokens in and out.

    `first` is None for an answer that was not streamed, the tokens where the answer did not tell its usage.
    """

    status: int
    seconds: float
    first: float | None = None
    prompt_tokens: int | None = None
    answer_tokens: int | None = None


@dataclass(frozen=True)
class LoopRun:
    """Answers to a load, in order of sending, and the seconds from the first request to the last answer."""

    answers: tuple[TimedReply, ...]
    elapsed: float


def timed(reply: TargetReply, first: float | None = None) -> TimedReply:
    """Figures of a reply; a stream that broke off has the status of its error."""
    used, status = _usage(reply.body), reply.status
    if first is not None and b'"error"' in reply.body.rsplit(b"data: ", 2)[-1]:
        status = 500
    return TimedReply(status, reply.seconds, first, used.get("prompt_tokens"), used.get("completion_tokens"))


def _usage(body: bytes) -> dict[str, Any]:
    """Usage that a reply tells, whole or in the last event of a stream."""
    for text in reversed(body.split(b"data: ")):
        if b'"usage"' in text:
            try:
                used = json.loads(text)["usage"]
            except (ValueError, KeyError, TypeError):
                return {}
            return used if isinstance(used, dict) else {}
    return {}


def closed(ask: Callable[[str], TimedReply], bodies: Sequence[str], clients: int) -> LoopRun:
    """Send the bodies once each with `clients` in flight at a time."""
    with ThreadPoolExecutor(clients) as pool:
        began = time.perf_counter()
        answers = tuple(pool.map(ask, bodies))
        return LoopRun(answers, time.perf_counter() - began)


def opened(ask: Callable[[str], TimedReply], bodies: Sequence[str], rate: float, seed: int = 0) -> LoopRun:
    """Send the bodies once each as a Poisson process of `rate` requests a second."""
    gaps = random.Random(seed)  # noqa: S311  (arrivals, no secret)

    def late(body: str, due: float) -> TimedReply:
        behind = max(0.0, time.perf_counter() - due)
        answer = ask(body)
        first = None if answer.first is None else answer.first + behind
        return replace(answer, seconds=answer.seconds + behind, first=first)

    with ThreadPoolExecutor(min(_MOST_AT_ONCE, len(bodies))) as pool:
        began = due = time.perf_counter()
        sent: list[Future[TimedReply]] = []
        for body in bodies:
            time.sleep(max(0.0, due - time.perf_counter()))
            sent.append(pool.submit(late, body, due))
            due += gaps.expovariate(rate)
        answers = tuple(each.result() for each in sent)
        return LoopRun(answers, time.perf_counter() - began)
