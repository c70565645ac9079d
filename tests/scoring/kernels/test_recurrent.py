"""A GPU's back end of models with recurrent layers against plain transformers: interpreted on a CPU.

TRITON_INTERPRET=1 pytest tests/scoring/kernels/test_recurrent.py     # with triton installed, no GPU
"""

import os
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")
if torch.cuda.is_available():
    pytest.skip("tests/scoring/decoder/test_recurrent_gpu.py has the real one", allow_module_level=True)
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1", allow_module_level=True)

from scoring.decoder.decoder import Decoder
from scoring.decoder.generic import recurrent
from scoring.decoder.generic.recurrent_cuda import RecurrentCudaBackend
from scoring.passes.families import RECURRENT, WHOLE_PROMPTS
from tests.scoring.decoder.test_adapters import generated, greedy, prompt
from tests.scoring.kernels.uncaptured import uncaptured
from tests.tiny_causal import tiny_causal

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::DeprecationWarning")
NEW = 4


@pytest.mark.parametrize("family", RECURRENT)
def test_tokens_are_those_of_generate_whatever_shares_the_steps(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts in batches and alone, of more tokens than a chunk has, in steps that are padded; slots are used again."""
    model = tiny_causal(family)
    decoder = Decoder(model, slots=6, max_length=128, tokens=640)
    decoder._cuda = ours = uncaptured(monkeypatch, RecurrentCudaBackend)(decoder.model, decoder.state)
    ours.prefiller.longest = 40
    monkeypatch.setattr(recurrent, "_place", lambda slots: slots)  # as on a GPU
    whole = family in WHOLE_PROMPTS
    long, alike, short = prompt(model, 90), [prompt(model, 7, seed) for seed in (1, 2, 3)], prompt(model, 2, 4)
    prompts = {5: long, 0: alike[0], 3: alike[1], 2: alike[2]}
    for slot in prompts:
        decoder.open(slot, greedy(model))
    parts = dict(prompts)
    if not whole:
        decoder.prefill_many([(5, long[:20]), (0, alike[0][:3]), (3, alike[1][:3])])
        parts |= {5: long[20:], 0: alike[0][3:], 3: alike[1][3:]}
    decoder.prefill_many(list(parts.items()))
    found: dict[int, list[int]] = {slot: [] for slot in prompts}

    def steps(slots: list[int], pending: Any) -> None:
        for slot, token in zip(slots, pending.tokens(), strict=True):
            found[slot].append(token)

    steps([3, 5, 0, 2], decoder.sample([3, 5, 0, 2]))
    for slots in ([3, 5, 0, 2], [5], [0, 3, 2], [2, 5, 3, 0]):
        steps(slots, decoder.step(slots))
    assert found == {slot: generated(model, ids, len(found[slot])) for slot, ids in prompts.items()}
    decoder.release(3)
    decoder.open(3, greedy(model))  # of whose states nothing is left
    decoder.prefill(3, short)
    again = [decoder.sample([3]).tokens()[0], *(decoder.step([0, 3, 5]).tokens()[1] for _ in range(NEW - 1))]
    assert again == generated(model, short, NEW)
