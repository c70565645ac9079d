"""Comparison, bit for bit, of a decoder's answers alone and within a batch: the promise of `--batch-invariant`."""

from collections.abc import Callable, Sequence
from itertools import cycle, islice
from typing import Any

import torch
from torch import Tensor

from scoring.decoder.block_pool import BLOCK, blocks_of
from scoring.decoder.decoder import Decoder
from scoring.decoder.verify import probes

_STEPS = 3
_ON_CPU = 3  # rows in company: there a step takes as long as dozens on a GPU
_FEW = 2  # rows up to which a long prompt is tried in every size
_PAST = 17  # tokens of a long prompt past the last edge of a span


@torch.inference_mode()
def difference(decoder: Decoder, config: Any) -> str:
    """Tell in which company an answer differs from the answer alone; empty if in none of those tried.

    Tried are steps of every size of batch that differs in how it is computed and for which the cache has room, prompts
    whole, in pieces and beside others, and a prompt's tokens fed one by one. Where attention divides keys into spans,
    also prompts of several, over whose edges steps go, and one that is long enough for long rows' own steps. Uses all
    slots.
    """
    ids = [own[: max(1, _most(decoder))] for own in probes(config)]
    return _varies(decoder, ids, _sizes(decoder, ids), len(ids[0]) - _STEPS) or _long(decoder, ids)


def _varies(decoder: Decoder, ids: Sequence[Sequence[int]], sizes: Sequence[int], given: int) -> str:
    """Difference of the answer to the first prompt within a batch, or with only `given` of its tokens prefilled."""
    prompt = ids[0]
    alone = _answer(decoder, ids, 1, len(prompt))
    for rows in sizes:
        for piece in (len(prompt), max(1, len(prompt) // 3)):
            found = _answer(decoder, ids, rows, piece)
            if not all(torch.equal(one, two) for one, two in zip(alone, found, strict=True)):
                return f"an answer alone differs from the same among {rows} rows"
    stepped = _stepped(decoder, prompt, max(1, given))
    return "" if torch.equal(stepped, alone[0]) else "tokens of a prompt differ from the same fed one by one"


def _long(decoder: Decoder, ids: Sequence[Sequence[int]]) -> str:
    """Difference of answers to prompts of several spans of keys, if attention divides keys so."""
    launcher, most = _launcher(decoder), _most(decoder)
    span = getattr(launcher, "keys", 0)
    edge = span * min(2, (most + 1) // span) if span else 0
    if not edge:
        return ""

    def tell(length: int, wanted: Callable[[int], bool], given: int) -> str:
        tried = [_repeated(ids[0], length), *ids[1:]]
        sizes = [rows for rows in _sizes(decoder, tried) if rows <= _FEW]
        sizes += [rows for rows in _sizes(decoder, tried) if rows > _FEW and wanted(rows)][:1]
        told = _varies(decoder, tried, sizes, given)
        return told and f"of {length:,} tokens, {told}"

    over = tell(edge - 1, lambda rows: launcher.splits(rows) < launcher.splits(1), edge - 1 - _STEPS)
    over = over or tell(min(edge + _PAST, most), lambda rows: False, edge - 1)
    rows, length = _far(launcher, _sizes(decoder, ids), span, most)
    return over or (tell(length, lambda others: others == rows, length - _STEPS) if rows else "")


def _far(launcher: Any, sizes: Sequence[int], span: int, most: int) -> tuple[int, int]:
    """Least rows and length of which a step divides long rows further; (0, 0) if none does."""
    for rows in sizes:
        for length in range(span + 1, most + 1, span):
            if launcher.is_far(rows, length + 1):
                return rows, length
    return 0, 0


def _launcher(decoder: Decoder) -> Any:
    """Launcher of a decoder's steps on a GPU; None on a CPU."""
    return None if decoder._cuda is None else decoder._cuda.launcher


def _repeated(ids: Sequence[int], length: int) -> list[int]:
    return list(islice(cycle(ids), length))


def _most(decoder: Decoder) -> int:
    """Tokens of the longest prompt that steps can follow."""
    return min(decoder.max_length, decoder.state.blocks * BLOCK) - _STEPS - 1


def _sizes(decoder: Decoder, ids: Sequence[Sequence[int]]) -> list[int]:
    """Numbers of rows to try, the first prompt and others: on a GPU each of which a graph is captured.

    As far as the cache has room for them.
    """
    own, other = (blocks_of(len(prompt) + _STEPS + 1) for prompt in ids[:2])
    room = 1 + max(0, decoder.state.blocks - own) // other
    slots = min(decoder.slots, _ON_CPU) if decoder.model.device.type == "cpu" else decoder.slots
    most = min(slots, room)
    return sorted({1, *(1 << power for power in range(most.bit_length())), most})


def _answer(decoder: Decoder, ids: Sequence[Sequence[int]], rows: int, piece: int) -> list[Tensor]:
    """Logits after the first prompt, and after each of some steps, in a batch of `rows` rows."""
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
    """Logits after a prompt of which `given` tokens were prefilled and the others fed to steps."""
    decoder.open(0)
    decoder.prefill(0, prompt[:given])
    decoder.sample([0])
    for token in prompt[given:]:
        decoder.feed(0, token)
        decoder.step([0])
    logits = decoder.last_logits(1)[0].clone()
    decoder.release(0)
    return logits
