"""Streams: pieces that add up to the answer, never half a character or a stop text, and an engine that is freed."""

from __future__ import annotations

import gc
import json
import threading
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scoring.api.answers import Reply
from scoring.config import Limits
from scoring.generation.detokenizer import Detokenizer, Stops, stop_at
from tests import tiny_tokenizers
from tests.conftest import Tiny
from tests.scoring.conftest import Serve, Served
from tests.scoring.generating import PROMPTS
from tests.tiny_models import CONTEXT, FAMILIES, tasks_of
from tests.waiting import until

GENERATIVE = [(f, t) for f, t in tasks_of("decoder") + tasks_of("encoder-decoder")]
MESSAGES = [{"role": "user", "content": "Hello there"}]
KEYS = {"summarization": "summary_text", "translation": "translation_text"}


def stream(served: Served, inputs: Any, **parameters: Any) -> tuple[list[str], Any]:
    """The pieces and the answer of a stream that must end well."""
    status, events = served({"inputs": inputs, "parameters": parameters, "stream": True})
    assert status == 200
    *tokens, answer, done = events
    assert done == "[DONE]"
    return [event["token"]["text"] for event in tokens], answer["answer"]


@pytest.mark.parametrize(("family", "task"), GENERATIVE)
def test_the_pieces_are_the_answer(family: str, task: str, tiny: Tiny, serve: Serve) -> None:
    served = serve(tiny(family, task), task)
    inputs = MESSAGES if task == "conversational" else PROMPTS[3]
    options: dict[str, Any] = {"num_beams": 1, "max_new_tokens": 24}
    if task in ("text-generation", "conversational"):
        options["return_full_text"] = False
    pieces, answer = stream(served, inputs, **options)
    assert "".join(pieces) == answer[0][KEYS.get(task, "generated_text")]
    assert answer == served.ok(inputs, **options)
    assert all(pieces)


def test_text_comes_while_it_is_generated(tiny: Tiny, serve: Serve) -> None:
    served = serve(tiny("gpt2", "text-generation"), "text-generation")
    pieces, answer = stream(served, "Hello", max_new_tokens=24)
    assert len(pieces) > 12
    assert "Hello" + "".join(pieces) == answer[0]["generated_text"]


def test_beams_come_in_one_piece(tiny: Tiny, serve: Serve) -> None:
    served = serve(tiny("gpt2", "text-generation"), "text-generation")
    pieces, answer = stream(served, "Hello", max_new_tokens=12, num_beams=3)
    assert ["Hello" + piece for piece in pieces] == [answer[0]["generated_text"]]


def test_a_stop_text_is_never_streamed(tiny: Tiny, serve: Serve) -> None:
    served = serve(tiny("gpt2", "text-generation"), "text-generation")
    whole = served.ok("Hello", max_new_tokens=24, return_full_text=False)[0]["generated_text"]
    for at in range(2, len(whole) - 4, 3):
        stop = whole[at : at + 4]
        pieces, answer = stream(served, "Hello", max_new_tokens=24, return_full_text=False, stop=[stop, "never there"])
        assert "".join(pieces) == answer[0]["generated_text"] == whole[: whole.index(stop)]


def test_azures_form_streams_and_is_answered_in_kind(tiny: Tiny, serve: Serve) -> None:
    served = serve(tiny("qwen2", "conversational"), "conversational")
    payload = {"input_data": {"input_string": MESSAGES, "parameters": {"max_new_tokens": 8}}, "stream": True}
    status, events = served(payload)
    assert status == 200
    pieces = "".join(event["token"]["text"] for event in events[:-2])
    assert events[-2:] == [{"answer": {"output": pieces}}, "[DONE]"]


@pytest.mark.parametrize(
    ("payload", "where"),
    [
        ({"inputs": ["a", "b"]}, "inputs"),
        ({"inputs": "x " * CONTEXT}, "inputs[0]"),
    ],
)
def test_what_cannot_be_streamed_is_a_status(payload: dict[str, Any], where: str, tiny: Tiny, serve: Serve) -> None:
    served = serve(tiny("gpt2", "text-generation"), "text-generation")
    status, answer = served(payload | {"stream": True})
    assert status == 400
    assert answer["error"]["where"] == where


def test_encoders_have_nothing_to_stream(tiny: Tiny, serve: Serve) -> None:
    served = serve(tiny("bert", "text-classification"), "text-classification")
    status, answer = served({"inputs": "a", "stream": True})
    assert (status, answer["error"]["where"]) == (400, "stream")


class Held:
    """A served model whose steps wait for `go`."""

    def __init__(self, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
        self.served = served
        self.steps = 0
        self.started = threading.Event()
        self.go = threading.Event()
        forward = served.service.loaded.model.forward

        def held(*args: Any, **kwargs: Any) -> Any:
            self.started.set()
            assert self.go.wait(30)
            self.steps += 1
            return forward(*args, **kwargs)

        monkeypatch.setattr(served.service.loaded.model, "forward", held)

    def stream(self, **parameters: Any) -> Reply:
        payload = {"inputs": "Hello", "parameters": {"max_new_tokens": 100, **parameters}, "stream": True}
        return self.served.service.answer(json.dumps(payload))

    def idle(self) -> None:
        """Return when the engine is free."""
        until(lambda: self.served.service.engine.depth() == 0)


@pytest.fixture
def held(tiny: Tiny, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    held = Held(serve(tiny("gpt2", "text-generation"), "text-generation"), monkeypatch)
    yield held
    held.go.set()
    held.idle()


def test_a_client_that_goes_away_frees_the_engine(held: Held) -> None:
    held.go.set()
    body: Any = held.stream().body
    assert json.loads(next(body).removeprefix(b"data: "))["token"]["text"]
    body.close()
    held.idle()
    assert held.steps < 100


def test_a_stream_that_nobody_reads_can_be_closed(held: Held) -> None:
    body: Any = held.stream().body
    assert held.started.wait(10)
    body.close()
    held.go.set()
    held.idle()
    assert held.steps <= 2


def test_a_stream_that_is_dropped_frees_the_engine(held: Held) -> None:
    reply: Reply | None = held.stream()
    assert held.started.wait(10)
    del reply
    gc.collect()
    held.go.set()
    held.idle()
    assert held.steps <= 2


def test_past_the_timeout_the_stream_ends_with_an_error(
    tiny: Tiny, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve(tiny("gpt2", "text-generation"), "text-generation", Limits(request_timeout_s=0.2))
    held = Held(served, monkeypatch)
    events = list(held.stream().body)
    held.go.set()
    assert json.loads(events[-1].removeprefix(b"data: "))["error"]["code"] == "request_timeout"
    held.idle()
    assert held.steps <= 2


def test_an_error_after_the_start_is_an_event_without_internals(held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    model = held.served.service.loaded.model
    forward = model.forward

    def failing(*args: Any, **kwargs: Any) -> Any:
        if held.steps == 3:
            raise RuntimeError("secret of the house")
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", failing)
    held.go.set()
    *events, last = list(held.stream().body)
    error = json.loads(last.removeprefix(b"data: "))["error"]
    assert error["code"] == "internal"
    assert "incident" in error["message"]
    assert "secret" not in last.decode()
    assert all("token" in json.loads(event.removeprefix(b"data: ")) for event in events)


def test_a_row_that_is_run_again_goes_on_where_its_stream_was(
    tiny: Tiny, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve(tiny("gpt2", "text-generation"), "text-generation")
    task = served.service.task
    parameters = task.schema.parse_parameters({"max_new_tokens": 12, "return_full_text": False})
    pieces: list[str] = []
    [row] = task.encode("Hello", parameters, 0)
    row.emit = lambda event: pieces.append(event["token"]["text"])
    forward = served.service.loaded.model.forward
    steps = iter(range(100))

    def failing_once(*args: Any, **kwargs: Any) -> Any:
        if next(steps) == 6:
            raise RuntimeError("out of memory")
        return forward(*args, **kwargs)

    monkeypatch.setattr(served.service.loaded.model, "forward", failing_once)
    with pytest.raises(RuntimeError):
        task.forward([row])
    assert pieces
    answer = task.decode("Hello", parameters, [row], task.forward([row]))
    assert "".join(pieces) == answer[0]["generated_text"]


# -- detokenising --------------------------------------------------------------------------------------------------

TOKENIZERS = {
    "byte-level": tiny_tokenizers.gpt2,
    "byte-fallback": tiny_tokenizers.llama,
    "gemma": tiny_tokenizers.gemma,
    "bloom": tiny_tokenizers.bloom,
    "unigram": tiny_tokenizers.t5,
    "two SentencePiece files": tiny_tokenizers.marian,
    "word pieces": tiny_tokenizers.bert,
}


@lru_cache(maxsize=20)
def tokenizer(name: str, cleans: bool) -> Any:
    made = TOKENIZERS[name](CONTEXT)
    made.clean_up_tokenization_spaces = cleans
    return made


def pieces_of(made: Any, tokens: list[int]) -> str:
    """What a stream shows before its end, which must be a beginning of the whole text."""
    detokenizer = Detokenizer(made)
    shown = "".join(detokenizer.push(token) for token in tokens)
    whole = made.decode(tokens, skip_special_tokens=True)
    assert whole.startswith(shown), (shown, whole)
    return whole[len(shown) :]


@pytest.mark.parametrize("cleans", [False, True])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_any_tokens_decode_piecewise_as_they_decode_whole(name: str, cleans: bool) -> None:
    made = tokenizer(name, cleans)

    @settings(max_examples=60, deadline=None)
    @given(st.lists(st.integers(0, len(made) - 1), max_size=120))
    def check(tokens: list[int]) -> None:
        pieces_of(made, tokens)

    check()


@pytest.mark.parametrize("name", ["byte-level", "byte-fallback", "gemma", "bloom"])
def test_unicode_is_never_split_and_soon_shown(name: str) -> None:
    made = tokenizer(name, False)

    @settings(max_examples=60, deadline=None)
    @given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40).map(lambda text: f"{text} end of it"))
    def check(text: str) -> None:
        tokens = made(text, add_special_tokens=False)["input_ids"]
        detokenizer = Detokenizer(made)
        pieces = [detokenizer.push(token) for token in tokens]
        assert "\ufffd" not in "".join(pieces) or "\ufffd" in text
        assert pieces_of(made, tokens) == ""  # plain text is not held back

    check()


def test_long_sequences_are_decoded_by_their_last_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    made = tokenizer("byte-level", False)
    longest = 0
    decode = made.decode

    def spy(tokens: list[int], **options: Any) -> str:
        nonlocal longest
        longest = max(longest, len(tokens))
        text: str = decode(tokens, **options)
        return text

    monkeypatch.setattr(made, "decode", spy)
    detokenizer = Detokenizer(made)
    tokens = made("The house is wonderful, the garden is small 😀. " * 40)["input_ids"]
    assert "".join(detokenizer.push(token) for token in tokens) == decode(tokens)
    assert longest < 60 < len(tokens)


@pytest.mark.parametrize("name", ["byte-level", "byte-fallback", "gemma", "bloom", "unigram", "word pieces"])
def test_a_token_whose_text_is_known_is_not_decoded_again(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tokenizer(name, False)
    tokens = made("the house is in the garden and the garden is by the house " * 8)["input_ids"]
    "".join(map(Detokenizer(made).push, tokens))  # texts of its tokens are known now
    detokenizer, calls = Detokenizer(made), 0
    decode = detokenizer._decode

    def counted(window: list[int]) -> str:
        nonlocal calls
        calls += 1
        return decode(window)

    monkeypatch.setattr(detokenizer, "_decode", counted)
    shown = "".join(map(detokenizer.push, tokens))
    assert made.decode(tokens, skip_special_tokens=True).startswith(shown)
    assert shown
    assert calls <= 3 + len(tokens) // 8


@pytest.mark.parametrize("name", [name for name in TOKENIZERS if name != "word pieces"])  # which have no space
def test_a_long_run_of_spaces_keeps_its_length(name: str) -> None:
    made = tokenizer(name, False)
    word = made("house", add_special_tokens=False)["input_ids"]
    (space,) = {"▁", "Ġ"} & made.get_vocab().keys()
    pieces_of(made, [*word, *[made.convert_tokens_to_ids(space)] * 80, *word, *word])


@pytest.mark.parametrize("text", ["It isn 't so . She 's here , they 've gone !", "a ' b ' ve n 't ' s  . x", "yes ?"])
def test_cleaned_up_spaces_stay_cleaned_up(text: str) -> None:
    made = tokenizer("unigram", True)
    assert made.clean_up_tokenization(text) != text
    pieces_of(made, made(text)["input_ids"])
    shown = Detokenizer(made)
    assert (
        "".join(shown._clean(character) for character in text + " end of")
        == made.clean_up_tokenization(text) + " end"[: len(" end")]
    )


def test_clean_up_holds_for_any_text() -> None:
    made = tokenizer("unigram", True)

    @settings(max_examples=300, deadline=None)
    @given(st.text("ab ntsmvre.?!,'", max_size=60))
    def check(text: str) -> None:
        detokenizer = Detokenizer(made)
        shown = "".join(detokenizer._clean(character) for character in text)
        assert made.clean_up_tokenization(text).startswith(shown)

    check()


@settings(max_examples=300, deadline=None)
@given(st.text("abc", max_size=30), st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3), st.data())
def test_stop_texts_cut_the_same_however_the_text_comes(text: str, stops: list[str], data: Any) -> None:
    cut = Stops(stops)
    shown, at = "", 0
    while at < len(text) and not cut.found:
        size = data.draw(st.integers(1, 5))
        shown += cut.push(text[at : at + size])
        at += size
    whole = text[: stop_at(text, stops)]
    if cut.found:
        assert shown == whole
    else:
        assert whole == text
        assert text.startswith(shown)
        assert len(text) - len(shown) < max(map(len, stops))


def test_every_generative_family_is_streamed() -> None:
    decoding = {name for name, family in FAMILIES.items() if family.kind != "encoder"}
    assert {family for family, _ in GENERATIVE} == decoding
