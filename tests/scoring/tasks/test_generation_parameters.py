"""The parameters of generation: how long answers get, what is refused, and that nothing is an internal error."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scoring.config import Limits
from scoring.decoder.decoder import Decoder
from scoring.schema.requests import MOST
from tests.conftest import Tiny
from tests.scoring.conftest import Serve, Served
from tests.scoring.generating import Steps
from tests.tiny_models import CONTEXT

TASK = "text-generation"


@pytest.fixture
def gpt2(tiny: Tiny, serve: Serve) -> Served:
    return serve(tiny("gpt2", TASK), TASK)


class TestLengths:
    def test_the_default_fills_what_is_left_of_the_context(self, gpt2: Served, monkeypatch: pytest.MonkeyPatch) -> None:
        tokens = len(gpt2.service.loaded.tokenizer("Hello there")["input_ids"])
        steps = Steps(gpt2, monkeypatch)
        gpt2.ok("Hello there", ignore_eos=True)
        assert steps.count == CONTEXT - tokens

    def test_the_default_is_128(self, tiny: Tiny, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
        served = serve(tiny("bloom", TASK), TASK, Limits(context_length=400))
        steps = Steps(served, monkeypatch)
        served.ok("Hello", ignore_eos=True)
        assert steps.count == 128

    def test_the_models_own_default_is_taken(self, gpt2: Served, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(gpt2.service.task.defaults, "max_new_tokens", 6)
        steps = Steps(gpt2, monkeypatch)
        gpt2.ok("Hello", ignore_eos=True)
        assert steps.count == 6

    def test_tokens_that_do_not_fit_are_refused_with_the_number_that_would(self, gpt2: Served) -> None:
        tokens = len(gpt2.service.loaded.tokenizer("Hello there")["input_ids"])
        error = gpt2.refused("Hello there", max_new_tokens=CONTEXT)
        assert error["where"] == "parameters.max_new_tokens"
        assert error["hint"] == f"Ask for {CONTEXT - tokens} or fewer."
        gpt2.ok("Hello there", max_new_tokens=CONTEXT - tokens)

    def test_a_prompt_that_fills_the_context_is_refused(self, gpt2: Served) -> None:
        error = gpt2.refused(["Hello", "x " * CONTEXT])
        assert error["code"] == "prompt_too_long"
        assert error["where"] == "inputs[1]"
        assert str(CONTEXT) in error["message"]

    def test_max_length_counts_the_prompt(self, gpt2: Served, monkeypatch: pytest.MonkeyPatch) -> None:
        tokens = len(gpt2.service.loaded.tokenizer("Hello there")["input_ids"])
        steps = Steps(gpt2, monkeypatch)
        gpt2.ok("Hello there", max_length=tokens + 3, ignore_eos=True)
        assert steps.count == 3
        steps.count = 0
        gpt2.ok("Hello there", max_length=1, max_new_tokens=4, ignore_eos=True)  # as in Microsoft's chat samples
        assert steps.count == 4
        steps.count = 0
        gpt2.ok("Hello there", max_length=10**6, ignore_eos=True)
        assert steps.count == CONTEXT - tokens
        assert gpt2.refused("Hello there", max_length=tokens)["where"] == "parameters.max_length"

    def test_least_tokens(self, tiny: Tiny, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
        served = serve(tiny("gpt2", TASK), TASK)
        ending = eos_first(served, monkeypatch)
        assert served.ok("Hello", max_new_tokens=9)[0]["generated_text"] == "Hello"
        steps = Steps(served, monkeypatch)
        for parameters in ({"min_new_tokens": 4}, {"min_length": ending + 4}):
            steps.count = 0
            served.ok("Hello", max_new_tokens=9, **parameters)
            assert steps.count == 5
        steps.count = 0
        served.ok("Hello", max_new_tokens=9, ignore_eos=True)
        assert steps.count == 9

    def test_more_at_least_than_at_most_is_refused(self, gpt2: Served) -> None:
        error = gpt2.refused("Hello", max_new_tokens=4, min_new_tokens=5)
        assert error["where"] == "parameters.min_new_tokens"


def eos_first(served: Served, monkeypatch: pytest.MonkeyPatch) -> int:
    """Make the model end at once wherever it may; returns the tokens of "Hello"."""
    model = served.service.loaded.model
    forward = model.forward

    def ending(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        output.logits[..., served.service.task.eos] += 1e4
        return output

    monkeypatch.setattr(model, "forward", ending)
    return len(served.service.loaded.tokenizer("Hello")["input_ids"])


def test_a_text_without_tokens_is_refused(gpt2: Served) -> None:
    assert gpt2.refused("")["where"] == "inputs"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", 0),
        ("max_new_tokens", "12"),
        ("max_new_tokens", True),
        ("max_new_tokens", 10**40),
        ("temperature", -1),
        ("temperature", "hot"),
        ("top_p", -0.1),
        ("top_p", 1.5),
        ("top_k", -2),
        ("num_beams", 17),
        ("stop", ""),
        ("top_k", 10**30),
        ("no_repeat_ngram_size", 10**30),
        ("cache_salt", ""),
        ("adapter", ""),
        ("adapter", 7),
        ("stop", ["a", 1]),
        ("seed", -2),
        ("length_penalty", 1e300),
        ("do_sample", "yes"),
        ("max_new_token", 4),
        ("return_full_text", 1),
    ],
)
def test_bad_parameters_are_named(name: str, value: Any, gpt2: Served) -> None:
    error = gpt2.refused("Hello", **{name: value})
    assert error["code"] == "invalid_parameter"
    assert name in error["where"] or name in error["message"]


def test_values_of_other_servers_mean_what_they_mean_there(tiny: Tiny, serve: Serve) -> None:
    folder = tiny("gpt2", TASK)
    for served in (serve(folder, TASK), on_slots(folder)):
        sampled: dict[str, Any] = {"do_sample": True, "max_new_tokens": 12, "seed": 4, "temperature": 3.0}
        assert served.ok("Hello", **sampled, top_k=-1) == served.ok("Hello", **sampled, top_k=0)
        assert served.ok("Hello", **sampled, top_p=0) == served.ok("Hello", max_new_tokens=12)
        assert len({served.ok("Hello", **sampled | {"seed": -1})[0]["generated_text"] for _ in range(4)}) > 1


def on_slots(folder: Path) -> Served:
    served = Served(folder, TASK)
    served.service.loaded.runtime.decoder = Decoder(served.service.loaded.model, 2, CONTEXT)
    return served


PARAMETERS = st.fixed_dictionaries(
    {},
    optional={
        "max_new_tokens": st.integers(1, 4),
        "max_length": st.integers(1, 140),
        "min_new_tokens": st.integers(0, 5),
        "min_length": st.integers(0, 140),
        "ignore_eos": st.booleans(),
        "do_sample": st.booleans(),
        "temperature": st.sampled_from([0, 1e-300, 0.7, 1, 100]),
        "top_k": st.sampled_from([0, 1, 50, MOST]),
        "top_p": st.sampled_from([1e-300, 0.5, 1]),
        "min_p": st.sampled_from([0, 0.5, 1]),
        "typical_p": st.sampled_from([1e-300, 0.5, 1]),
        "seed": st.sampled_from([0, 2**63 - 1]),
        "repetition_penalty": st.sampled_from([0.01, 1.0, 1.3, 100]),
        "no_repeat_ngram_size": st.sampled_from([0, 1, 2, MOST]),
        "num_beams": st.integers(1, 3),
        "length_penalty": st.sampled_from([-10, 0, 1, 10]),
        "early_stopping": st.sampled_from([True, False, "never"]),
        "num_return_sequences": st.integers(1, 3),
        "stop": st.sampled_from(["a", ["\n", " the"]]),
        "presence_penalty": st.sampled_from([-2, 0, 0.5, 2]),
        "frequency_penalty": st.sampled_from([-2, 0, 0.5, 2]),
        "logit_bias": st.sampled_from([{}, {"0": 100.0, "5": -100}, {"400": 1.5}, {"4000000000": 0}]),
        "stop_token_ids": st.sampled_from([[], [3], list(range(16)), [2**31 - 1]]),
        "priority": st.sampled_from([0, -MOST, MOST]),
        "return_details": st.booleans(),
        "prompt_logprobs": st.sampled_from([0, 2, 20]),
        "truncate_prompt_tokens": st.sampled_from([-1, 1, 2, MOST]),
        "allowed_token_ids": st.sampled_from([[5], [5, 9, 11], [MOST]]),
        "bad_words": st.sampled_from([["a"], ["the end", " "]]),
        "include_stop_str_in_output": st.booleans(),
        "return_token_ids": st.booleans(),
        "use_cache": st.booleans(),
        "return_full_text": st.booleans(),
        "guided_choice": st.sampled_from([["a"], ["yes", "no"]]),
        "guided_regex": st.sampled_from(["[0-9]+", "a(b"]),
        "guided_json": st.sampled_from([{"type": "object"}, {"not": {}}, "{"]),
    },
)


@pytest.fixture(scope="module")
def short(tiny: Tiny, serve: Serve) -> Served:
    """A context so short that defaults stay cheap."""
    return serve(tiny("gpt2", TASK), TASK, Limits(context_length=24))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parameters=PARAMETERS)
def test_no_combination_of_parameters_is_an_internal_error(parameters: dict[str, Any], short: Served) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        status, answer = short({"inputs": ["Hello", "The"], "parameters": parameters})
    assert status in (200, 400), answer
    if status == 400:
        assert answer["error"]["hint"]
