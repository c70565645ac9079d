"""The check that a decoder's logits and greedy tokens are those of plain transformers, beside each other."""

from typing import Any

from scoring.decoder.decoder import Decoder
from tests.scoring.decoder.test_adapters import TOLERANCE, generated, greedy, plain_logits, prompt


def check_as_generate(decoder: Decoder, model: Any, text: Any, new: int) -> None:
    """A prompt in pieces past the windows, another that shares its beginning, and a short one, in steps together.

    `text` is the part of the model whose vocabulary prompts are drawn from.
    """
    first = prompt(text, 90)
    prompts = {2: first, 0: first[:70] + prompt(text, 9, 1), 3: prompt(text, 3)}
    for slot, ids in prompts.items():
        held = decoder.open(slot, greedy(model), ids, "salt")
        assert held == (70 if slot == 0 else 0)
        for piece in (ids[:40], ids[40:]) if slot == 2 else (ids[held:],):
            logits = decoder.prefill(slot, piece)
        wanted = plain_logits(model, ids)[-1]
        assert (logits - wanted).norm() <= TOLERANCE * wanted.norm(), slot
    slots = list(prompts)
    produced = [decoder.sample(slots).tokens()] + [decoder.step(slots).tokens() for _ in range(new - 1)]
    assert [list(row) for row in zip(*produced, strict=True)] == [
        generated(model, ids, new) for ids in prompts.values()
    ]
