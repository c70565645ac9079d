"""Sixty-four sequences at once, in any order, on a pool far smaller than all of them: each as it is alone.

Prompts come in pieces, some share a beginning, and rows give up their slots and go on later.
"""

from __future__ import annotations

import random
from functools import partial
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from scoring.decoder.block_pool import BLOCK
from scoring.decoder.decoder import Decoder
from scoring.decoder.generic.plain import plain_logits
from scoring.generation.scheduler import Scheduler
from scoring.passes.families import Tier
from tests.scoring.conftest import Served

_ROWS, _BLOCKS = 64, 8
_GROWING, _MORE = 56, 12  # tokens of a row that is admitted with one block and comes to need another


def check_company_of_64(served: Served, model: Any, tier: Tier, plain: Any = None) -> None:
    """Compare each answer of a model with plain transformers over that row alone; `served` lends its task.

    `plain`: the model on a CPU, where it is not that itself.
    """
    plain = plain or model
    decoder = Decoder(model, 16, 128, tokens=_BLOCKS * BLOCK, tier=tier)
    task, rng = served.service.task, random.Random(0)
    before = dict(served.service.statistics())
    scheduler = Scheduler(task, decoder, decoder.capacity)
    scheduler.budget = 64
    common = [rng.randrange(5, 90) for _ in range(66)]
    waiting, prompts, done = [], {}, {}
    for number in range(_ROWS):
        own = [rng.randrange(5, 90) for _ in range(_GROWING if number % 4 == 0 else rng.randrange(1, 30))]
        prompts[number] = common + own if number % 4 == 1 else own
        asked = {"max_new_tokens": _MORE if number % 4 == 0 else 2, "ignore_eos": True}
        [row] = task.encode("The", task.schema.parse_parameters(asked), 0)
        row.features["input_ids"] = prompts[number]
        waiting.append((number, row))
    rng.shuffle(waiting)
    while waiting or scheduler.active:
        while waiting and scheduler.fits(waiting[0][1]):
            number, row = waiting.pop(0)
            scheduler.add(row, partial(done.__setitem__, number))
        scheduler.step()
    whole = [torch.tensor(ids + list(done[number][0])) for number, ids in prompts.items()]
    with torch.inference_mode():  # what pads a row comes behind it, and changes nothing
        picked = plain(pad_sequence(whole, batch_first=True).to(plain.device)).logits.argmax(-1)
    for number, ids in prompts.items():
        answer = list(done[number][0])
        found = picked[number, len(ids) - 1 : len(ids) + len(answer) - 1].tolist()
        if found != answer and decoder.recurrent is not None:  # some modules compute a step otherwise than a prompt
            found = plain_logits(plain, ids + answer, len(ids)).argmax(-1)[len(ids) - 1 : -1].tolist()
        assert found == answer, number
    told = served.service.statistics()
    assert told["preemptions"] > before["preemptions"]
    cached = told["cached_tokens"] - before["cached_tokens"]
    assert cached > 64 if decoder.recurrent is None else cached == 0
    assert decoder.tables.pool.used == 0
