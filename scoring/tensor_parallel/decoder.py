"""A static decoder over slices: rank 0's calls are repeated by the other ranks, each with its part of the heads."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor

from scoring.decoder.decoder import Decoder
from scoring.decoder.kv_cache import SamplingParams
from scoring.decoder.pending import Pending
from scoring.decoder.sampler import Added
from scoring.distributed.tp_group import TensorParallelGroup
from scoring.errors import RankLost
from scoring.tensor_parallel.workers import Workers


class SlicedDecoder(Decoder):
    """A `Decoder` of a sliced model; the same calls, from one thread, each sent to the other ranks without waiting.

    A call that fails after it was sent ends with RankLost, and so does every later one.
    """

    def __init__(
        self, model: Any, slots: int, max_length: int, ranks: Workers, tokens: int = 0, share: float = 0.0
    ) -> None:
        self._ranks = ranks
        plan = ranks.plan
        ranks.send(("build", {"slots": slots, "max_length": max_length, "tokens": tokens, "share": share}))
        device = torch.device("cuda", 0) if plan.device == "cuda" else torch.device("cpu")
        try:
            team = TensorParallelGroup(0, plan.degree, device, plan.call_s, ranks.check)
            super().__init__(model, slots, max_length, team, tokens, share)
        finally:
            ranks.hear("built")

    def open(
        self, slot: int, sampling: SamplingParams | None = None, ids: Sequence[int] = (), salt: str | None = None
    ) -> int:
        try:
            held = super().open(slot, sampling, ids, salt)
        except ValueError:  # refused before anything changed
            raise
        except Exception as error:  # the ranks' tables may differ now
            raise self._ranks.fail(error) from error
        self._ranks.send(("open", {"slot": slot, "sampling": sampling, "ids": list(ids), "salt": salt}))
        return held

    def evict(self, most: int) -> None:
        if self.tables.pool.idle > max(most, 0):
            super().evict(most)
            self._ranks.send(("evict", {"most": most}))

    def feed(self, slot: int, token: int) -> None:
        super().feed(slot, token)
        self._ranks.send(("feed", {"slot": slot, "token": token}))

    def release(self, slot: int, ids: Sequence[int] | None = None) -> None:
        super().release(slot, ids)
        with suppress(RankLost):  # a lost rank's part is released all the same
            self._ranks.send(("release", {"slot": slot, "ids": None if ids is None else list(ids)}))

    def prefill_many(self, parts: Sequence[tuple[int, Sequence[int]]]) -> Tensor:
        self._check_parts(parts)
        with self._together("prefill_many", parts=[(slot, list(ids)) for slot, ids in parts]):
            return super().prefill_many(parts)

    def sample(self, slots: Sequence[int], masks: Tensor | None = None, added: Added = ()) -> Pending:
        self.open_logits(slots)
        with self._together("sample", slots=list(slots)):  # the others take this rank's tokens, and need no more
            return _Watched(super().sample(slots, masks, added), self._ranks)

    def step(self, slots: Sequence[int]) -> Pending:
        self._check_step(slots)
        with self._together("step", slots=list(slots)):
            return _Watched(super().step(slots), self._ranks)

    def warm_up(self, sizes: Sequence[int] | None = None) -> None:
        with self._together("warm_up", sizes=None if sizes is None else list(sizes)):
            super().warm_up(sizes)
            self._ranks.hear("warm")

    def use_int8(self, wanted: bool = True) -> None:
        super().use_int8(wanted)  # here first: if memory is too short, the others are not asked
        self._ranks.send(("use_int8", {"wanted": wanted}))

    def drop(self) -> None:
        """Have the other ranks release their parts."""
        if not self._ranks.lost:
            self._ranks.send(("drop", {}))

    @contextmanager
    def _together(self, name: str, **arguments: Any) -> Iterator[None]:
        """Have the other ranks start a call with all-reduces, which all ranks must complete."""
        self._ranks.send((name, arguments))
        try:
            yield
        except RankLost:
            raise
        except Exception as error:
            raise self._ranks.fail(error) from error


class _Watched:
    """Tokens that fail to arrive if a rank is lost."""

    def __init__(self, pending: Pending, ranks: Workers) -> None:
        self._pending = pending
        self._ranks = ranks

    def tokens(self) -> list[int]:
        try:
            return self._pending.tokens()
        except (RuntimeError, TimeoutError) as error:
            raise self._ranks.fail(error) from error
