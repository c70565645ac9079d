"""Ray Serve replica: the bundle's own score.py in a worker process, behind the same `Host` as on one machine.

At import only the standard library and `manifest`: `scoring` has to be the bundle's, which `__init__` enters first.
Answers cross processes as status, headers and bytes, never as exceptions of a package that the other side may lack.
"""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from local_runner.bundle import manifest
from local_runner.replicas.ray import bundle_actor, bundle_copy

# Marks the JSON of an error in an exception's text, which is all that Ray Serve's status keeps of it.
FAILED = "mii_azure failed: "

# Status, headers and body; the body is None if pieces follow.
Head = tuple[int, dict[str, str], bytes | None]


class ReplicaFailed(Exception):
    """Reports to the front, through Ray Serve's status, which error kept a replica from starting."""


class RayReplica:
    """Deployment class; Ray Serve runs its coroutines on one event loop."""

    async def __init__(self, bundle: bundle_copy.Reference, namespace: str) -> None:  # type: ignore[misc]  # is awaited
        try:
            folder = bundle_copy.locate(bundle, namespace)
            manifest.enter(folder)
            # Imported only now: this imports `scoring`, and the bundle's own has to be the one found.
            from local_runner.host.host import ScriptHost
            from local_runner.replicas import answers

            self._host, self._answer = ScriptHost(folder), answers.answer
            await self._host.load()
            self._reporting = asyncio.create_task(self._report(bundle.desk, namespace))
        except Exception as error:
            if not hasattr(error, "to_dict"):
                raise
            raise ReplicaFailed(FAILED + json.dumps(error.to_dict())) from None

    async def score(self, raw: str, headers: dict[str, str]) -> Head | None:
        """Return status, headers and body; None if the answer is a stream, for which `stream` has to be called."""
        answer = await self._answer(self._host, raw, headers)
        if answer.chunks is None:
            return answer.status, answer.headers, answer.body
        answer.close()
        return None

    async def stream(self, raw: str, headers: dict[str, str]) -> AsyncGenerator[Head | bytes, None]:
        """Yield the head first, then the pieces of the stream."""
        answer = await self._answer(self._host, raw, headers)
        yield answer.status, answer.headers, answer.body if answer.chunks is None else None
        if answer.chunks is None:
            return
        async with aclosing(self._host.chunks(answer)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def check_health(self) -> None:
        """Raise if requests would not be answered; Ray Serve then replaces this replica."""
        if not self._host.ready:
            raise RuntimeError("the scoring engine is not ready")

    async def _report(self, desk: str, namespace: str) -> None:
        """Report this replica's statistics to the front's actor, as long as both live; a new front has a new actor."""
        import ray

        actor_id: str = ray.get_runtime_context().get_actor_id()
        actor: Any = None
        while True:
            try:
                actor = actor or await asyncio.to_thread(ray.get_actor, desk, namespace)
                await actor.report.remote(actor_id, self._host.statistics())
            except (ValueError, ray.exceptions.RayError):
                actor = None
            await asyncio.sleep(bundle_actor.REPORT_S)


def failure(message: str) -> dict[str, Any] | None:
    """Error body that a replica left in Ray Serve's status; None if there is none."""
    _, found, rest = message.partition(FAILED)
    if not found:
        return None
    try:
        body, _ = json.JSONDecoder().raw_decode(rest)
    except ValueError:  # the status was truncated
        return None
    return dict(body)
