"""On a GPU, where tokens are read a step late: log-probabilities, prompts that begin alike, lost slots."""

from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scoring.config import Limits
from scoring.decoder.decoder import Decoder
from scoring.decoder.logprobs import ScoredTokens
from scoring.engine.row import Row
from scoring.generation import drafting
from scoring.generation.scheduler import Scheduler
from scoring.schema.structured import Constraint
from tests.conftest import Tiny
from tests.scoring.conftest import Served
from tests.scoring.generating import repeating

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
TASK = "text-generation"
LONG = "Once upon a time there was a king who wanted to know everything about stars."
SAMPLED = {"do_sample": True, "temperature": 1.4, "top_k": 30, "repetition_penalty": 1.2}


def on_gpu(folder: Path) -> Served:
    served = Served(folder, TASK, Limits())
    model = served.service.loaded.model.float()  # in 16 bits, another cut of a prompt may pick another token
    served.service.loaded.runtime.decoder = Decoder(model, 4, served.service.loaded.context_length)
    return served


def encoded(served: Served, text: str, **parameters: Any) -> Row:
    task = served.service.task
    [row] = task.encode(text, task.schema.parse_parameters(parameters), 0)
    return row


def outputs(slots: Scheduler, rows: list[Row]) -> list[Any]:
    done: dict[int, Any] = {}
    waiting = list(enumerate(rows))
    while waiting or slots.active:
        while waiting and slots.fits(waiting[0][1]):
            number, row = waiting.pop(0)
            slots.add(row, partial(done.__setitem__, number))
        slots.step()
    return [done[number][0] for number in range(len(rows))]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_answers_are_the_same_whatever_slots_hold_and_give_up(tiny: Tiny, family: str) -> None:
    served = on_gpu(tiny(family, TASK))
    task: Any = served.service.task
    model, decoder = served.service.loaded.model, served.service.loaded.runtime.decoder
    asked: list[dict[str, Any]] = [{}, {**SAMPLED, "seed": 3}, {}, {**SAMPLED, "seed": 4}]
    asked = [{"max_new_tokens": 24, "min_new_tokens": 20, "return_details": True, **how} for how in asked]
    texts = [LONG, LONG + " And", "The", LONG + " A fox"]

    def rows() -> list[Row]:
        return [encoded(served, text, **how) for text, how in zip(texts, asked, strict=True)]

    alone = [outputs(Scheduler(task, decoder, 10**6), [row])[0] for row in rows()]
    for row, answer in zip(rows(), alone, strict=True):
        ids = row.features["input_ids"]
        with torch.inference_mode():
            logits = model(torch.tensor([ids + answer], device=model.device)).logits[0, len(ids) - 1 : -1]
        wanted = torch.log_softmax(logits.float(), -1).cpu()[range(len(answer)), answer]
        found = torch.tensor([chance.logprob for chance in answer.logprobs])
        torch.testing.assert_close(found, wanted, atol=2e-3, rtol=1e-3)
    cached, given_up = (served.service.statistics()[name] for name in ("cached_tokens", "preemptions"))
    assert outputs(Scheduler(task, decoder, 10**6), rows()) == alone
    assert served.service.statistics()["cached_tokens"] > cached
    short = Scheduler(task, decoder, sum(row.tokens + 12 for row in rows()) + 3)
    assert outputs(short, rows()) == alone
    assert served.service.statistics()["preemptions"] > given_up
    assert served.service.drain(20)


class Ascending:
    """A grammar without a library: each token is above the one before, by 40 at most."""

    ended = False

    def __init__(self) -> None:
        self.last = 300

    def check(self) -> None:
        """It never becomes too complex."""


class AscendingGrammars:
    """Stands for compiled grammars, and their masks."""

    def __init__(self, vocabulary: int) -> None:
        self.words = -(-vocabulary // 32)

    def start(self, constraint: Any) -> Ascending:
        return Ascending()

    def advance(self, grammars: list[Ascending], tokens: list[int]) -> None:
        for grammar, token in zip(grammars, tokens, strict=True):
            assert grammar.last < token <= grammar.last + 40, (grammar.last, token)
            grammar.last = token

    def masks(self, grammars: list[Ascending]) -> torch.Tensor:
        bits = np.zeros((len(grammars), 32 * self.words), dtype=np.uint8)
        for own, grammar in zip(bits, grammars, strict=True):
            own[grammar.last + 1 : grammar.last + 41] = 1
        return torch.from_numpy(np.packbits(bits, axis=1, bitorder="little").view(np.int32)).pin_memory()


def test_a_mask_knows_the_token_before_though_others_are_read_late(tiny: Tiny) -> None:
    """Free rows beside bound ones answer as without them; bound ones obey masks that their last tokens make."""
    served = on_gpu(tiny("gpt2", TASK))
    task: Any = served.service.task
    decoder = served.service.loaded.runtime.decoder
    task.grammars = AscendingGrammars(decoder.model.vocabulary)
    free = [
        encoded(served, text, max_new_tokens=4, **how) for text in (LONG, "The") for how in ({}, SAMPLED | {"seed": 1})
    ]
    slots = Scheduler(task, decoder, 4 * 128)
    alone = outputs(slots, free)
    bound = []
    for how in ({}, SAMPLED | {"seed": 2}):
        row = encoded(served, LONG, max_new_tokens=4, min_new_tokens=4, return_details=True, top_n_tokens=2, **how)
        row.parameters = replace(row.parameters, constraint=Constraint("regex", "a", "here"))
        bound.append(row)
    together = outputs(slots, [free[0], bound[0], free[1], bound[1], free[2], free[3]])
    assert [together[0], together[2], *together[4:]] == alone
    for tokens in (together[1], together[3]):
        assert len(tokens) == 4
        assert all(0 < after - before <= 40 for before, after in pairwise([300, *tokens]))
        assert len(tokens.logprobs) == 4


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3", "mistral"])
@pytest.mark.parametrize("tier", ["fused", "generic"])
def test_drafts_change_no_answer(tiny: Tiny, family: str, tier: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that share steps, drafted wherever a token occurred before, against the same without drafts."""
    monkeypatch.setitem(drafting.PAYOFFS, "cuda", drafting.Payoff(6, 32, 0.0, 0.001))
    monkeypatch.setattr("scoring.generation.prompt_lookup._LEAST", 1)
    served = on_gpu(tiny(family, TASK))
    task: Any = served.service.task
    model = repeating(served.service.loaded.model)
    asked: list[dict[str, Any]] = [{}, {"do_sample": True, "temperature": 0.4}, {"repetition_penalty": 1.2}]
    asked += [{"do_sample": True, "temperature": 1.1, "top_p": 0.9}, {"return_details": True, "top_n_tokens": 2}]
    asks = [
        {"max_new_tokens": 20 + 7 * number, "min_new_tokens": 9, **how, **({"seed": 5} if "do_sample" in how else {})}
        for number, how in enumerate(asked)
    ]
    found = []
    for drafts, most in ((False, 10**6), (True, 10**6), (True, 4 * 64)):
        decoder = Decoder(model, 5, served.service.loaded.context_length, drafts=drafts, tier=tier)
        found.append(outputs(Scheduler(task, decoder, most), [encoded(served, LONG[:60], **ask) for ask in asks]))
    assert found[0] == found[1] == found[2]
    told = served.service.statistics()
    assert told["drafted_tokens"] > told["accepted_tokens"] > 60
    for one, other in zip(found[0], found[1], strict=True):
        if isinstance(one, ScoredTokens):
            wanted = [chance.logprob for chance in one.logprobs]
            assert [chance.logprob for chance in other.logprobs] == pytest.approx(wanted, abs=2e-3)
    assert served.service.drain(20)
