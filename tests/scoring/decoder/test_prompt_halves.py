"""Prompts in halves: how they are shared out, and that each half's answers are those of the whole."""

import threading
from collections.abc import Iterator
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor

from scoring.decoder.decoder import Decoder
from scoring.decoder.prompt_halves import halves_of
from scoring.decoder.torch_backend import LayerAttention, TorchBackend
from tests.conftest import Tiny

PROMPTS = [[5 + at for at in range(count)] for count in (3, 30, 17, 20)]


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def model(tiny: Tiny) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny("llama", "text-generation")).eval()


@pytest.mark.parametrize(
    ("counts", "halves"),
    [
        ([32, 32, 32, 32], ([0, 2], [1, 3])),
        ([20, 60, 48], ([1], [2, 0])),
        ([16, 16], ([0], [1])),
        ([128], None),
        ([100, 20], None),
        ([10, 10], None),
    ],
)
def test_halves_have_nearly_as_many_tokens(counts: list[int], halves: Any) -> None:
    assert halves_of(counts) == halves


def opened(model: Any) -> tuple[Decoder, TorchBackend]:
    decoder = Decoder(model, slots=len(PROMPTS), max_length=64)
    for slot in range(len(PROMPTS)):
        decoder.open(slot)
    assert isinstance(decoder.plain, TorchBackend)
    return decoder, decoder.plain


@pytest.mark.usefixtures("two_threads")
def test_halves_answer_as_each_prompt_alone(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (decoder, back_end), (alone, _) = opened(model), opened(model)
    run, ran, slots = back_end._run, set[str](), list(range(len(PROMPTS)))

    def noted(tokens: Tensor, attention: LayerAttention) -> Tensor:
        ran.add(threading.current_thread().name.partition("_")[0])
        return run(tokens, attention)

    monkeypatch.setattr(back_end, "_run", noted)
    decoder.prefill_many(list(enumerate(PROMPTS)))
    for slot, ids in enumerate(PROMPTS):
        alone.prefill(slot, ids)
    assert ran == {"prompts"}
    torch.testing.assert_close(decoder.open_logits(slots), alone.open_logits(slots), rtol=1e-4, atol=1e-5)
    assert decoder.sample(slots).tokens() == alone.sample(slots).tokens()
    assert [decoder.step(slots).tokens() for _ in range(3)] == [alone.step(slots).tokens() for _ in range(3)]
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_a_half_that_fails_fails_the_prompts_once_both_have_ended(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, back_end = opened(model)
    run, ended = back_end._run, list[int]()

    def fails(tokens: Tensor, attention: LayerAttention) -> Tensor:
        if len(tokens) == 30 + 3:
            raise RuntimeError("no such product")
        ended.append(len(tokens))
        return run(tokens, attention)

    monkeypatch.setattr(back_end, "_run", fails)
    with pytest.raises(RuntimeError, match="no such product"):
        decoder.prefill_many(list(enumerate(PROMPTS)))
    assert ended == [17 + 20]


@pytest.mark.usefixtures("two_threads")
def test_a_slice_of_a_model_has_no_halves(model: Any) -> None:
    """Its sums over ranks are one after another."""
    _, back_end = opened(model)
    assert back_end._halved()
    back_end.model.team = Mock()
    assert not back_end._halved()
