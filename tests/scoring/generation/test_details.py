"""Log-probabilities and several answers: as plain transformers computes them, on slots and through `generate`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from scoring.config import Limits
from scoring.decoder.decoder import Decoder
from scoring.decoder.logprobs import measure_logprobs, read_logprobs
from tests.conftest import Tiny
from tests.scoring.conftest import Served
from tests.scoring.generating import plain

TASK = "text-generation"
PROMPT = "Hello there, how are you?"
FAMILIES = ["gpt2", "bloom", "llama"]


def served_on(folder: Path, task: str = TASK, slots: int = 3) -> Served:
    served = Served(folder, task, Limits())
    loaded = served.service.loaded
    if slots:
        loaded.runtime.decoder = Decoder(loaded.model, slots, loaded.context_length)
    return served


@pytest.fixture(params=[3, 0], ids=["slots", "generate"])
def gpt2(request: pytest.FixtureRequest, tiny: Tiny) -> Iterator[Served]:
    served = served_on(tiny("gpt2", TASK), slots=request.param)
    yield served
    assert served.service.drain(20)


def expected(folder: Path, text: str, tokens: list[int], task: str = TASK) -> torch.Tensor:
    """Log-probabilities [tokens, vocabulary] by one plain forward over a prompt and the tokens after it."""
    model, tokenizer = plain(folder, task)
    ids = tokenizer(text)["input_ids"]
    with torch.inference_mode():
        logits = model(torch.tensor([ids + tokens])).logits[0]
    return torch.log_softmax(logits[len(ids) - 1 : -1].float(), -1)


def check(details: dict[str, Any], folder: Path, text: str, most: int) -> None:
    tokens = [token["id"] for token in details["tokens"]]
    wanted = expected(folder, text, tokens)
    own = torch.tensor([token["logprob"] for token in details["tokens"]])
    torch.testing.assert_close(own, wanted[range(len(tokens)), tokens], atol=2e-4, rtol=1e-4)
    assert ("top_tokens" in details) is bool(most)
    for row, top in zip(wanted, details.get("top_tokens", []), strict=False):
        assert len(top) == most
        values = torch.tensor([token["logprob"] for token in top])
        torch.testing.assert_close(values, row.topk(most).values, atol=2e-4, rtol=1e-4)
        torch.testing.assert_close(values, row[[token["id"] for token in top]], atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("slots", [3, 0], ids=["slots", "generate"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "parameters",
    [
        {"top_n_tokens": 4},
        {"do_sample": True, "seed": 3, "temperature": 1.4, "top_k": 9, "repetition_penalty": 1.3, "top_n_tokens": 2},
        {"min_new_tokens": 9},
    ],
    ids=["greedy", "sampled", "held back"],
)
def test_log_probabilities_are_the_models_own(tiny: Tiny, family: str, slots: int, parameters: dict[str, Any]) -> None:
    folder = tiny(family, TASK)
    served = served_on(folder, slots=slots)
    texts = [PROMPT, "The", "12"]
    asked = {"max_new_tokens": 9, "return_full_text": False, **parameters}
    answers = served.ok(texts, **asked, return_details=True)
    for text, [answer] in zip(texts, answers, strict=True):
        details = answer["details"]
        check(details, folder, text, parameters.get("top_n_tokens", 0))
        assert details["generated_tokens"] == len(details["tokens"])
        assert details["finish_reason"] in ("length", "eos_token")
        assert details["seed"] == parameters.get("seed")
        assert "".join(token["text"] for token in details["tokens"]) == answer["generated_text"]
    bare = {name: value for name, value in asked.items() if name != "top_n_tokens"}
    plain_texts = [[{"generated_text": answer["generated_text"]}] for [answer] in answers]
    assert served.ok(texts, **bare) == plain_texts
    assert served.service.drain(20)


def test_beams_and_encoder_decoders_tell_them_too(tiny: Tiny) -> None:
    folder = tiny("gpt2", TASK)
    served = served_on(folder, slots=0)
    answers = served.ok(
        PROMPT, num_beams=3, num_return_sequences=2, max_new_tokens=6, return_details=True, top_n_tokens=1
    )
    assert len(answers) == 2
    for answer in answers:
        check(answer["details"], folder, PROMPT, 1)
    assert served.service.drain(20)
    folder = tiny("t5", "summarization")
    served = served_on(folder, "summarization", slots=0)
    details = served.ok("A long text.", max_new_tokens=5, num_beams=1, return_details=True)[0]["details"]
    model, tokenizer = plain(folder, "summarization")
    told = model.generate(
        **tokenizer(served.service.task.prefix("summarization") + "A long text.", return_tensors="pt"),  # type: ignore[attr-defined]
        max_new_tokens=5, num_beams=1, do_sample=False, output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    tokens = told.sequences[0, 1:].tolist()
    assert [token["id"] for token in details["tokens"]] == tokens
    wanted = [float(torch.log_softmax(step[0], -1)[token]) for step, token in zip(told.logits, tokens, strict=True)]
    assert [token["logprob"] for token in details["tokens"]] == pytest.approx(wanted, abs=2e-4)
    assert served.service.drain(20)


def test_rows_that_do_not_ask_pay_nothing(gpt2: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []

    def never(*_: Any) -> Any:
        measured.append(True)  # whatever fails on slots is answered without them: an exception alone would not be seen
        raise AssertionError

    monkeypatch.setattr("scoring.generation.enqueued.measure_logprobs", never)
    monkeypatch.setattr("scoring.generation.generated.measure_logprobs", never)
    gpt2.ok([PROMPT, "The"], max_new_tokens=4)
    assert not measured


def test_a_stop_text_is_no_part_of_the_details(gpt2: Served) -> None:
    whole = gpt2.ok(PROMPT, max_new_tokens=12, return_full_text=False)[0]["generated_text"]
    asked = {"max_new_tokens": 12, "return_full_text": False, "stop": whole[4:6], "return_details": True}
    answer = gpt2.ok(PROMPT, **asked)[0]
    text, details = answer["generated_text"], answer["details"]
    assert details["finish_reason"] == "stop_sequence"
    told = "".join(token["text"] for token in details["tokens"])
    assert told.startswith(text)
    assert not "".join(token["text"] for token in details["tokens"][:-1]).startswith(text) or not text
    assert len(details["tokens"]) <= details["generated_tokens"] < 12


@pytest.mark.parametrize("parameters", [{}, {"do_sample": True, "seed": 5, "num_return_sequences": 3}])
def test_streams_tell_the_same_details(gpt2: Served, parameters: dict[str, Any]) -> None:
    asked = {"max_new_tokens": 9, "return_full_text": False, "return_details": True, "top_n_tokens": 2, **parameters}
    whole = gpt2.ok(PROMPT, **asked)
    status, events = gpt2({"inputs": PROMPT, "parameters": asked, "stream": True})
    assert (status, events[-1]) == (200, "[DONE]")
    assert events[-2]["answer"] == whole
    for index, answer in enumerate(whole):
        own = [event for event in events[:-2] if event["token"].get("index", 0) == index]
        assert "".join(event["token"]["text"] for event in own) == answer["generated_text"]
        for name in ("tokens", "top_tokens"):
            told = [entry for event in own for entry in event.get("details", {}).get(name, [])]
            wanted = answer["details"][name]
            assert json.dumps(told) == json.dumps(wanted)


def test_answers_on_slots_are_rows_with_seeds_of_their_own(tiny: Tiny) -> None:
    served = served_on(tiny("gpt2", TASK))
    sampled = {"do_sample": True, "temperature": 1.5, "max_new_tokens": 8, "return_full_text": False}
    reply = served({"inputs": PROMPT, "parameters": {**sampled, "seed": 7, "num_return_sequences": 5},
                    "options": {"usage": True}})[1]  # fmt: skip
    texts = [entry["generated_text"] for entry in reply["answer"]]
    assert texts == [served.ok(PROMPT, **sampled, seed=7 + n)[0]["generated_text"] for n in range(5)]
    assert len(set(texts)) > 1
    tokenizer = served.service.loaded.tokenizer
    assert reply["usage"]["prompt_tokens"] == len(tokenizer(PROMPT)["input_ids"])
    assert len(reply["usage"]["finish_reasons"]) == 5
    assert served.service.drain(20)


def test_top_tokens_without_details_are_refused(gpt2: Served) -> None:
    assert gpt2.refused("a", top_n_tokens=2)["where"] == "parameters.top_n_tokens"


def test_what_is_impossible_has_a_number(tiny: Tiny) -> None:
    logits = torch.tensor([[0.0, -torch.inf, 1.0]])
    [chance] = read_logprobs(measure_logprobs(logits, torch.tensor([1]), 5).tolist(), [3])
    assert chance.logprob == -9999.0
    assert [token for token, _ in chance.top] == [2, 0, 1]
    assert chance.top[2][1] == -9999.0


def test_rows_of_a_step_that_was_split_are_told_their_own(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    served = served_on(tiny("gpt2", TASK), slots=3)
    task, texts = served.service.task, ["The", "12", "Hello"]
    parameters = task.schema.parse_parameters({"max_new_tokens": 6, "ignore_eos": True, "return_details": True})
    wanted = [task.forward(task.encode(text, parameters, 0))[0][0] for text in texts]
    decoder = served.service.loaded.runtime.decoder
    step, split = decoder.step, []

    def alone(slots: Any) -> Any:
        if len(slots) > 1:
            split.append(len(slots))
            raise RuntimeError("too many at once")
        return step(slots)

    monkeypatch.setattr(decoder, "step", alone)
    told = [output[0] for output in task.forward([task.encode(text, parameters, 0)[0] for text in texts])]
    assert split
    assert told == wanted
    for one, other in zip(told, wanted, strict=True):
        assert [c.logprob for c in one.logprobs] == pytest.approx([c.logprob for c in other.logprobs], abs=1e-4)
    assert served.service.drain(20)
