"""Base class of every front: a Host whose requests are answered by replicas elsewhere, counted and timed here."""

import asyncio
import time
from abc import abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from pathlib import Path

from local_runner.bundle.script import Answer
from local_runner.host.host import Host, internal
from local_runner.protocol import errors
from scoring.errors import InternalError, MiiAzureError, Overloaded, RequestTimeout

_GRACE_S = 2.0  # a replica's own timeout fires first
# Headers that stop at the front.
_CREDENTIALS = {"authorization", "x-api-key"}


class Frontend(Host):
    """Counts of requests and streams, and time limits, for answers of replicas."""

    def __init__(self, bundle: Path, copies: int) -> None:
        super().__init__(bundle / "code", copies)
        self._busy = 0  # requests not answered yet
        self._asked_again = 0

    @abstractmethod
    async def ask(self, raw: str, headers: dict[str, str]) -> Answer:
        """Ask a replica, whichever are lost before the answer begins; cancelled when the time is up."""

    async def pieces(self, answer: Answer) -> AsyncGenerator[bytes, None]:
        """Yield the pieces of a streamed answer."""
        if not isinstance(answer.chunks, AsyncIterator):
            raise InternalError("The answer is not a stream of this front's.")
        async for piece in answer.chunks:
            yield piece

    async def ask_in_time(self, raw: str, headers: dict[str, str]) -> Answer:
        """Call `ask` within the bundle's timeout; raises RequestTimeout after it, InternalError for the unforeseen."""
        limit = self.deployment.limits.request_timeout_s
        try:
            async with asyncio.timeout(limit + _GRACE_S):
                return await self.ask(raw, headers)
        except TimeoutError:
            raise RequestTimeout(f"No answer within {limit:g} s.", "Ask for less at once.") from None
        except MiiAzureError:
            raise
        except Exception as error:
            raise internal(error) from error

    async def chunks(self, answer: Answer) -> AsyncGenerator[bytes, None]:
        """Yield the pieces of a streamed answer; closing this cancels the stream in its replica."""
        began: float | None = time.perf_counter()
        self._streams += 1
        try:
            async with aclosing(self.pieces(answer)) as pieces:
                async for piece in pieces:
                    if began is not None:
                        self.metrics.first_event(time.perf_counter() - began)
                        answer.began()
                        began = None
                    yield piece
        except Exception as error:
            known = error if isinstance(error, MiiAzureError) else internal(error)
            yield b"data: " + errors.body_of(known) + b"\n\n"
        finally:
            self._streams -= 1
            answer.close()

    @property
    def lost(self) -> bool:
        """Always False: replicas are restarted behind a front that stays."""
        return False

    async def _score(self, raw: str, headers: Mapping[str, str]) -> Answer:
        if not self.ready:
            raise self.unready()
        if self._busy >= self._slots:
            raise Overloaded(f"{self._busy} requests are in flight already.", "Ask again later.")
        self._busy += 1
        sent = {key.lower(): headers[key] for key in headers if isinstance(headers[key], str)}
        try:
            return await self.ask_in_time(raw, {key: sent[key] for key in sent if key not in _CREDENTIALS})
        finally:
            self._busy -= 1

    @property
    def _in_flight(self) -> int:
        return self._busy + self._streams
