"""Biases, penalties, stop tokens, min-p and log-probabilities of prompts, as transformers has them, on slots or not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    SequenceBiasLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from scoring.decoder.decoder import Decoder
from scoring.decoder.sampler import restrict
from scoring.generation.adjustments import Adjustments, Taken
from scoring.tasks.base import logit_count
from tests.conftest import Tiny
from tests.scoring.conftest import Served
from tests.scoring.generating import PROMPTS, plain

TASK, PROMPT, MOST = "text-generation", PROMPTS[1], 14


@pytest.fixture(scope="module")
def served(tiny: Tiny) -> Iterator[Served]:
    made = Served(tiny("gpt2", TASK), TASK)
    loaded = made.service.loaded
    loaded.runtime.decoder = Decoder(loaded.model, 6, loaded.context_length)
    yield made
    assert made.service.drain(20)


@pytest.fixture
def either(served: Served, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Served:
    """The served model, with its slots and by plain `generate`."""
    if request.param == "generate":
        monkeypatch.setattr(served.service.task, "_slotted", lambda *_: False)
    return served


both = pytest.mark.parametrize("either", ["slots", "generate"], indirect=True)


def tokens(served: Served, text: str = PROMPT, **parameters: Any) -> list[int]:
    asked = {"max_new_tokens": MOST, "return_details": True, **parameters}
    return [token["id"] for token in served.ok(text, **asked)[0]["details"]["tokens"]]


class Penalties(LogitsProcessor):  # type: ignore[misc,unused-ignore]
    """OpenAI's formula as its documentation writes it: mu[j] - c[j] * frequency - float(c[j] > 0) * presence."""

    def __init__(self, start: int, presence: float, frequency: float) -> None:
        self.start, self.presence, self.frequency = start, presence, frequency

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        for row, ids in enumerate(input_ids[:, self.start :].tolist()):
            for token, count in Counter(ids).items():
                scores[row, token] += -count * self.frequency - float(count > 0) * self.presence
        return scores


def expected(tiny: Tiny, *processors: Any, text: str = PROMPT, **options: Any) -> list[int]:
    """Tokens of plain transformers under processors of its own, or of these tests."""
    model, tokenizer = plain(tiny("gpt2", TASK), TASK)
    inputs = tokenizer(text, return_tensors="pt")
    start = inputs.input_ids.shape[1]
    made = [each(start) if isinstance(each, type(lambda: 0)) else each for each in processors]
    found = model.generate(
        **inputs, do_sample=False, max_new_tokens=MOST, logits_processor=LogitsProcessorList(made), **options
    )
    ids: list[int] = found[0, start:].tolist()
    return ids


@both
@pytest.mark.parametrize(("presence", "frequency"), [(2.0, 0.0), (0.0, 2.0), (1.1, 0.7), (-1.5, -0.5)])
def test_penalties_are_openais(tiny: Tiny, either: Served, presence: float, frequency: float) -> None:
    wanted = expected(tiny, lambda start: Penalties(start, presence, frequency))
    assert tokens(either, presence_penalty=presence, frequency_penalty=frequency) == wanted


def test_penalties_change_what_is_generated(served: Served) -> None:
    usual = tokens(served)
    assert len(set(usual)) < len(usual)  # it repeats itself: what penalties are for
    assert tokens(served, frequency_penalty=2.0) != usual


@both
def test_a_bias_is_transformers_sequence_bias(tiny: Tiny, either: Served) -> None:
    first, second = list(dict.fromkeys(tokens(either)))[:2]
    bias = {first: -100.0, second: 3.5, 7: 2.0}
    wanted = expected(tiny, SequenceBiasLogitsProcessor({(token,): value for token, value in bias.items()}))
    assert tokens(either, logit_bias={str(token): value for token, value in bias.items()}) == wanted
    assert set(tokens(either, logit_bias={"9": 100}, ignore_eos=True)) == {9}


@both
def test_a_bias_beside_a_repetition_penalty_and_a_grammar(either: Served) -> None:
    asked: dict[str, Any] = {"logit_bias": {"11": 4.0}, "presence_penalty": 1.0, "repetition_penalty": 1.4}
    alone = tokens(either, **asked)
    assert len(alone) == MOST or alone[-1] in either.service.task.eos
    answer = either.ok(PROMPT, guided_choice=["yes", "no"], **asked)[0]["generated_text"]
    assert answer.removeprefix(PROMPT) in ("yes", "no")


def test_both_ways_agree_where_everything_is_asked_for(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {
        "logit_bias": {"11": 4.0, "12": -3.0},
        "presence_penalty": 1.0,
        "frequency_penalty": 0.4,
        "repetition_penalty": 1.4,
        "min_new_tokens": 3,
    }
    on_slots = tokens(served, **asked)
    monkeypatch.setattr(served.service.task, "_slotted", lambda *_: False)
    assert tokens(served, **asked) == on_slots


def test_rows_beside_penalised_ones_answer_as_alone(served: Served) -> None:
    asked = [
        {},
        {"presence_penalty": 2.0, "frequency_penalty": 1.0},
        {"logit_bias": {"5": 6.0}},
        {"temperature": 1.3, "seed": 4, "min_p": 0.1},
        {"guided_regex": "[a-z]{4,9}"},
        {"temperature": 1.3, "seed": 4, "presence_penalty": 1.0},
    ]
    alone = [tokens(served, text, **each) for each in asked for text in PROMPTS[:3]]
    with ThreadPoolExecutor(len(alone)) as pool:
        together = list(
            pool.map(lambda pair: tokens(served, pair[1], **pair[0]), [(e, t) for e in asked for t in PROMPTS[:3]])
        )
    assert together == alone


@both
def test_a_stop_token_ends_the_text_and_may_be_held_back(either: Served) -> None:
    usual = tokens(either, ignore_eos=True)
    stop = next(token for at, token in enumerate(usual) if at > 2 and token not in usual[:at])
    at = usual.index(stop)
    [told] = either.ok(PROMPT, stop_token_ids=[stop], max_new_tokens=MOST, return_details=True, ignore_eos=False)
    assert [token["id"] for token in told["details"]["tokens"]][: at + 1] == usual[: at + 1]
    assert told["details"]["finish_reason"] == "stop_sequence"
    assert told["details"]["generated_tokens"] == at + 1
    status, answer = either(
        {
            "inputs": PROMPT,
            "parameters": {"stop_token_ids": [stop], "max_new_tokens": MOST},
            "options": {"usage": True},
        }
    )
    assert (status, answer["usage"]["finish_reasons"]) == (200, ["stop"])
    held = tokens(either, stop_token_ids=[stop], min_new_tokens=at + 2)
    assert stop not in held[: at + 2]


@both
def test_allowed_tokens_are_all_but_those_that_transformers_suppresses(tiny: Tiny, either: Served) -> None:
    usual = list(dict.fromkeys(tokens(either, ignore_eos=True)))
    some = [*usual[1:3], 40, 41, 42]
    others = [token for token in range(logit_count(either.service.loaded.model)) if token not in some]
    wanted = expected(tiny, SuppressTokensLogitsProcessor(others, device="cpu"))
    assert tokens(either, allowed_token_ids=some) == wanted
    biased = {(some[-1],): 3.0, (usual[0],): 50.0}  # the second is none of those that may come
    wanted = expected(tiny, SequenceBiasLogitsProcessor(biased), SuppressTokensLogitsProcessor(others, device="cpu"))
    asked = {str(token): value for (token,), value in biased.items()}
    assert tokens(either, allowed_token_ids=some, logit_bias=asked) == wanted
    assert tokens(either, allowed_token_ids=[some[0], 43], stop_token_ids=[some[0]], min_new_tokens=3)[:3] == [43] * 3


@both
def test_bad_words_are_those_of_transformers(tiny: Tiny, either: Served) -> None:
    task = either.service.task
    usual = tokens(either, ignore_eos=True)
    single = next(each for each in usual if task.tokenizer.encode(task.tokenizer.decode([each])) == [each])
    words = [task.tokenizer.decode([single]), "a b"]
    runs = [task.tokenizer.encode(text) for word in words for text in (word, f" {word}")]
    assert [single] in runs
    wanted = expected(tiny, NoBadWordsLogitsProcessor(runs))
    assert single not in wanted
    assert tokens(either, bad_words=words) == wanted


def test_of_a_run_only_the_last_token_is_banned_and_only_behind_the_others() -> None:
    banned = Adjustments(banned=((7,), (1, 2, 3)))
    taken = Taken()
    for token, expected_ban in ((1, {7}), (2, {7, 3}), (1, {7}), (1, {7}), (2, {7, 3}), (3, {7})):
        taken.append(token, banned.memory)
        assert set(banned.after(taken)) == expected_ban
        assert len(taken.last) <= banned.memory == 2
    assert set(banned.after(Taken.of([5, 1, 2]))) == {7, 3}


@pytest.mark.parametrize(("top_p", "min_p"), [(1.0, 0.05), (1.0, 0.3), (0.8, 0.1), (1.0, 1.0)])
def test_min_p_is_transformers(served: Served, top_p: float, min_p: float) -> None:
    logits = torch.randn(500, generator=torch.Generator().manual_seed(3)) * 3
    processors = [
        TemperatureLogitsWarper(0.7),
        *([TopPLogitsWarper(top_p)] if top_p < 1 else []),
        MinPLogitsWarper(min_p),
    ]
    wanted = LogitsProcessorList(processors)(torch.zeros(1, 1, dtype=torch.int64), logits[None].clone())[0]
    found = restrict(logits, 0.7, 0, top_p, min_p)
    assert torch.equal(found.isinf(), wanted.isinf())
    assert torch.allclose(found, wanted, atol=1e-5)
    asked = {"temperature": 0.7, "seed": 9, "top_p": top_p, "min_p": min_p}
    assert tokens(served, **asked) == tokens(served, **asked)
    if min_p == 1.0:
        assert tokens(served, **asked) == tokens(served)  # the likeliest alone


@both
def test_the_prompts_log_probabilities_are_the_models(tiny: Tiny, either: Served) -> None:
    model, tokenizer = plain(tiny("gpt2", TASK), TASK)
    text = " ".join(PROMPTS[1:4])
    ids = tokenizer(text, return_tensors="pt").input_ids
    with torch.no_grad():
        every = torch.log_softmax(model(ids).logits[0].float(), -1)
    [told] = either.ok(text, prompt_logprobs=2, return_details=True, max_new_tokens=3)
    prefill, tops = told["details"]["prefill"], told["details"]["prefill_top_tokens"]
    assert [token["id"] for token in prefill] == ids[0].tolist()
    assert prefill[0]["logprob"] is None
    wanted = every[:-1].gather(1, ids[0, 1:, None])[:, 0]
    assert torch.allclose(torch.tensor([token["logprob"] for token in prefill[1:]]), wanted, atol=1e-4)
    assert [[each["id"] for each in own] for own in tops[1:]] == every[:-1].topk(2).indices.tolist()
    assert "".join(token["text"] for token in prefill) == tokenizer.decode(ids[0], skip_special_tokens=True)
    assert tokens(either, text)[:3] == [token["id"] for token in told["details"]["tokens"]]


def test_a_prompt_is_not_scored_on_once_its_row_is_cancelled(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scoring.generation.generated._PIECE", 4)
    task, pieces = served.service.task, []
    asked = {"prompt_logprobs": 1, "return_details": True, "max_new_tokens": 1}
    [row] = task.encode(" ".join(PROMPTS[1:4]), task.schema.parse_parameters(asked), 0)
    assert row.tokens > 12

    def between() -> None:
        pieces.append(1)
        if len(pieces) == 3:  # the one of the new token, and two of the prompt
            row.cancelled.set()

    [[tokens]] = task.forward([row], between)
    assert len(pieces) == 3
    assert tokens.prompt is None


def test_only_the_last_tokens_of_a_prompt(served: Served) -> None:
    ids = served.service.task.call_tokenizer(PROMPT)["input_ids"]
    [told] = served.ok(PROMPT, truncate_prompt_tokens=3, prompt_logprobs=0, return_details=True, max_new_tokens=2)
    assert [token["id"] for token in told["details"]["prefill"]] == ids[-3:]


@both
@pytest.mark.parametrize("how", [{}, {"do_sample": True, "seed": 1}], ids=str)
def test_where_no_token_is_left_a_request_is_refused(how: dict[str, Any], either: Served) -> None:
    """Whichever way answers, greedily or not."""
    task: Any = either.service.task
    ends = list(task.eos)
    refused = either.refused(PROMPT, allowed_token_ids=ends, min_new_tokens=3, max_new_tokens=5, **how)
    assert refused["where"] == "parameters.allowed_token_ids"
    bound = {"allowed_token_ids": [5], "guided_choice": ["a"]}
    assert either.refused(PROMPT, **bound, **how)["code"] == "invalid_parameter"
    assert len(either.ok(PROMPT, allowed_token_ids=[5], max_new_tokens=3, **how)) == 1


@pytest.mark.parametrize(
    ("parameters", "place"),
    [
        ({"presence_penalty": 2.1}, "presence_penalty"),
        ({"frequency_penalty": "1"}, "frequency_penalty"),
        ({"logit_bias": {"x": 1}}, "logit_bias.x"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5"),
        ({"logit_bias": {"99999": 1}}, "logit_bias"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"stop_token_ids": [99999]}, "stop_token_ids"),
        ({"stop_token_ids": [-1]}, "stop_token_ids.0"),
        ({"prompt_logprobs": 3}, "prompt_logprobs"),
        ({"prompt_logprobs": 21, "return_details": True}, "prompt_logprobs"),
        ({"priority": "high"}, "priority"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ({"allowed_token_ids": []}, "allowed_token_ids"),
        ({"allowed_token_ids": [99999]}, "allowed_token_ids"),
        ({"bad_words": ["a"] * 129}, "bad_words"),
    ],
    ids=str,
)
def test_refusals_name_their_place(served: Served, parameters: dict[str, Any], place: str) -> None:
    assert served.refused(PROMPT, **parameters)["where"].startswith(f"parameters.{place}")
