"""Comparison, bit for bit, of a decoder's answers alone with the same in company: what `--batch-invariant` promises."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from scoring.decoder.decoder import Decoder
from scoring.decoder.verify import probes

_STEPS = 3
_ON_CPU = 3  # rows in company: there a step takes as long as dozens on a GPU


@torch.inference_mode()
def difference(decoder: Decoder, config: Any) -> str:
    """Tell in which company an answer differs from the answer alone; empty if in none of those tried.

    Tried are steps of every size of batch that differs in how it is computed, prompts whole, in pieces and beside
    others, and a prompt's tokens fed one by one. Uses all slots.
    """
    ids = [own[: max(1, decoder.max_length - _STEPS - 1)] for own in probes(config)]
    alone = _answer(decoder, ids, 1, len(ids[0]))
    for rows in _sizes(decoder):
        for piece in (len(ids[0]), max(1, len(ids[0]) // 3)):
            found = _answer(decoder, ids, rows, piece)
            if not all(torch.equal(one, two) for one, two in zip(alone, found, strict=True)):
                return f"an answer alone differs from the same among {rows} rows"
    stepped = _stepped(decoder, ids[0], max(1, len(ids[0]) - _STEPS))
    return "" if torch.equal(stepped, alone[0]) else "tokens of a prompt differ from the same fed one by one"


def _sizes(decoder: Decoder) -> list[int]:
    """Numbers of rows to try: on a GPU each of which a graph is captured."""
    most = min(decoder.slots, _ON_CPU) if decoder.model.device.type == "cpu" else decoder.slots
    return sorted({1, *(1 << power for power in range(most.bit_length())), most})


def _answer(decoder: Decoder, ids: Sequence[Sequence[int]], rows: int, piece: int) -> list[Tensor]:
    """Logits after the first prompt, and after each of some steps, among so many rows."""
    slots = [(3 * row + 1) % decoder.slots for row in range(rows)] if decoder.slots % 3 else list(range(rows))
    mine, prompt = slots[rows // 2], ids[0]
    others = [(slot, ids[1 + number % (len(ids) - 1)]) for number, slot in enumerate(slots) if slot != mine]
    for slot in slots:
        decoder.open(slot)
    before = others[: rows // 2]
    logits = decoder.prefill_many([*before, (mine, prompt[:piece]), *others[rows // 2 :]])[len(before)]
    for first in range(piece, len(prompt), piece):
        logits = decoder.prefill(mine, prompt[first : first + piece])
    found = [logits.clone()]
    decoder.sample(slots)
    for number in range(_STEPS):
        decoder.feed(mine, prompt[number])
        decoder.step(slots)
        found.append(decoder.last_logits(rows)[rows // 2].clone())
    for slot in slots:
        decoder.release(slot)
    return found


def _stepped(decoder: Decoder, prompt: Sequence[int], given: int) -> Tensor:
    """Logits after a prompt of which only so many tokens were prefilled, the others fed to steps."""
    decoder.open(0)
    decoder.prefill(0, prompt[:given])
    decoder.sample([0])
    for token in prompt[given:]:
        decoder.feed(0, token)
        decoder.step([0])
    logits = decoder.last_logits(1)[0].clone()
    decoder.release(0)
    return logits
