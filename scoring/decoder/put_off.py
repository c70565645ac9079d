"""Steps whose tokens are picked once the masks of their constrained rows are there: for all of their rows at once."""

from collections.abc import Callable, Collection, Sequence
from functools import partial

import torch
from torch import Tensor

from scoring.decoder.decode_step import Launcher
from scoring.decoder.pending import Pending
from scoring.decoder.transfers import PinnedUpload, SideUpload, Wait, fill


class PutOffTokens:
    """Tokens of a step of which nothing is picked yet; to read them picks those that no mask is awaited for.

    `rows` counts those that were enqueued, padded ones too, and `left` are the slots that need masks.
    """

    def __init__(
        self, slots: Sequence[int], rows: int, left: Collection[int], logits: Tensor, finish: Callable[[], None]
    ) -> None:
        self.slots = slots
        self.rows = rows
        self.left = frozenset(left)
        self.logits = logits
        self.read: Pending | None = None  # once they are picked
        self._finish = finish

    def masked(self, slots: Sequence[int]) -> list[int]:
        """Number of each row's mask among those of `slots`, -1 for none."""
        numbers = {slot: number for number, slot in enumerate(slots)}
        return [numbers.get(slot, -1) for slot in self.slots] + [-1] * (self.rows - len(self.slots))

    def tokens(self) -> list[int]:
        """One token per slot, of no meaning where a mask is still awaited."""
        if self.read is None:
            self._finish()
        assert self.read is not None
        return self.read.tokens()


class _Some:
    """Tokens of some rows of those that are being read."""

    def __init__(self, every: Pending, rows: Sequence[int]) -> None:
        self._every = every
        self._rows = rows

    def tokens(self) -> list[int]:
        every = self._every.tokens()
        return [every[row] for row in self._rows]


class PutOffSampling:
    """Sampling of a launcher's last step, if it was put off; `read` begins to read what was picked for some rows."""

    def __init__(
        self, launcher: Launcher, rows: int, wait: Wait, beside: SideUpload, read: Callable[[int], Pending]
    ) -> None:
        self._launcher = launcher
        self._beside = beside
        self._read = read
        self._last: PutOffTokens | None = None
        self.newest = False  # nothing was picked since
        self._masked = torch.zeros(rows, dtype=torch.int32, device=launcher.model.device)
        self._sent = PinnedUpload(wait, rows)
        self._told: list[int] = []  # what the device was told last

    def put_off(self, slots: Sequence[int], rows: int, left: Collection[int]) -> PutOffTokens:
        """Put off the sampling of a step that was just enqueued."""
        self._last = PutOffTokens(slots, rows, left, self._launcher.logits_of(rows), self.finish)
        self.newest = True
        return self._last

    @torch.inference_mode()
    def finish(self) -> None:
        """Pick the tokens that were put off, but for those of slots that need masks."""
        last, self._last = self._last, None
        if last is not None:
            self._launcher.sample(last.rows, last.logits, advance=True)
            last.read = self._read(len(last.slots))

    def finish_before(self, slots: Sequence[int]) -> None:
        """Do so if some of these slots, which are to be changed now, are of that step."""
        if self._last is not None and not set(slots).isdisjoint(self._last.slots):
            self.finish()

    def sample(self, slots: Sequence[int], masks: Tensor) -> Pending | None:
        """Pick tokens within masks for slots that need them, and what was put off with them; None if nothing was."""
        last = self._last
        if last is None or not last.left.issuperset(slots):
            return None
        masked = last.masked(slots)
        if masked != self._told:
            self._told = masked
            self._sent.send(self._masked[: len(masked)], partial(fill, masked))
        held = self._beside.send(masks, last.logits.device)
        self._launcher.sample(last.rows, last.logits, advance=True, masks=held, masked=self._masked)
        self._last = None
        last.read = self._read(len(last.slots))
        return _Some(last.read, [last.slots.index(slot) for slot in slots])
