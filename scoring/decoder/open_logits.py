"""Logits of slots from which no token was picked yet."""

from collections.abc import Sequence

import torch
from torch import Tensor

from scoring.decoder.logprobs import indices


class OpenLogits:
    """Logits by slot, kept as rows of the tensors in which they came, which is not copied where all of it is wanted."""

    def __init__(self) -> None:
        self._rows: dict[int, tuple[Tensor, int]] = {}  # tensor and row of each slot
        self._chosen: tuple[list[int], Tensor] = ([], torch.empty(0))  # rows chosen last, and the same on the device

    def keep(self, slots: Sequence[int], logits: Tensor) -> None:
        """Keep logits [slots, vocabulary], which nobody may write to afterwards."""
        self._rows.update((slot, (logits, row)) for row, slot in enumerate(slots))

    def keep_some(self, slots: Sequence[int], rows: Sequence[int], logits: Tensor) -> None:
        """Keep these rows of a step's logits, whose memory the next step writes to on a GPU."""
        if logits.device.type == "cpu":
            self._rows.update((slot, (logits, row)) for slot, row in zip(slots, rows, strict=True))
            return
        if self._chosen[0] != rows:
            self._chosen = list(rows), indices(rows, logits.device)
        self.keep(slots, logits[self._chosen[1]])

    def of(self, slots: Sequence[int]) -> Tensor:
        """Logits [slots, vocabulary], not to be written to."""
        held = [self._rows[slot] for slot in slots]
        first = held[0][0]
        if len(first) == len(held) and all(each is first and row == at for at, (each, row) in enumerate(held)):
            return first
        return torch.stack([logits[row] for logits, row in held])

    def drop(self, slots: Sequence[int]) -> None:
        """Forget slots, of which some may be unknown."""
        for slot in slots:
            self._rows.pop(slot, None)
