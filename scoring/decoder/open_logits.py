"""Logits of slots from which no token was picked yet."""

from collections.abc import Sequence

import torch
from torch import Tensor

from scoring.decoder.logprobs import indices


class OpenLogits:
    """Logits by slot, kept as rows of the tensors in which they came, which is not copied where all of it is wanted."""

    def __init__(self) -> None:
        self._rows: dict[int, tuple[Tensor, int]] = {}  # tensor and row of each slot
        self._lent: dict[int, int] = {}  # slots whose rows, of this number, are still the last step's
        self._step = torch.empty(0)  # that step's
        self._chosen: tuple[list[int], Tensor] = ([], torch.empty(0))  # rows chosen last, and the same on the device

    def keep(self, slots: Sequence[int], logits: Tensor) -> None:
        """Keep logits [slots, vocabulary], which nobody may write to afterwards."""
        self._rows.update((slot, (logits, row)) for row, slot in enumerate(slots))

    def lend(self, slots: Sequence[int], some: Sequence[int], logits: Tensor) -> None:
        """Keep those of some slots of a step's logits [slots, vocabulary], to which others write after `settle`."""
        rows = {slot: row for row, slot in enumerate(slots)}
        self._step = logits
        self._lent = {slot: rows[slot] for slot in some}

    def lent(self, slots: Sequence[int]) -> bool:
        """Return True if nobody asked yet for the logits of these slots, all of the last step's."""
        return all(slot in self._lent for slot in slots)

    def settle(self) -> None:
        """Copy what is kept of a step's logits, on a GPU, where the next step writes to the same memory."""
        slots, rows = list(self._lent), list(self._lent.values())
        self._lent = {}
        if not slots:
            return
        if self._step.device.type == "cpu":
            self._rows.update((slot, (self._step, row)) for slot, row in zip(slots, rows, strict=True))
            return
        if self._chosen[0] != rows:
            self._chosen = rows, indices(rows, self._step.device)
        self.keep(slots, self._step[self._chosen[1]])

    def of(self, slots: Sequence[int]) -> Tensor:
        """Logits [slots, vocabulary], not to be written to."""
        self.settle()
        held = [self._rows[slot] for slot in slots]
        first = held[0][0]
        if len(first) == len(held) and all(each is first and row == at for at, (each, row) in enumerate(held)):
            return first
        return torch.stack([logits[row] for logits, row in held])

    def drop(self, slots: Sequence[int]) -> None:
        """Forget slots, of which some may be unknown."""
        for slot in slots:
            self._rows.pop(slot, None)
            self._lent.pop(slot, None)
