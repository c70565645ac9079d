"""Steps of models with recurrent layers away from the host: devices and types are right, and nothing is waited for.

Tensors are on the device "meta", without numbers: whatever a step read of them on the host would raise.
"""

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from scoring.decoder.decoder import Decoder
from scoring.decoder.generic.interface import configs_of
from scoring.decoder.generic.model import GenericModel
from scoring.decoder.generic.recurrent import SlotStates, scans_of
from scoring.passes.families import RECURRENT
from tests.tiny_causal import tiny_causal

SLOTS, SEQUENCES, TOKENS = 4, 3, 5


@pytest.mark.parametrize("family", RECURRENT)
def test_a_step_is_enqueued_without_the_host(family: str) -> None:
    told = Decoder(tiny_causal(family).to(torch.bfloat16), slots=SLOTS, max_length=64).model
    assert isinstance(told, GenericModel)
    states = told.recurrent
    assert isinstance(states, SlotStates)
    with torch.inference_mode():
        with torch.device("meta"):
            module = AutoModelForCausalLM.from_config(told.module.config, dtype=torch.bfloat16).eval()
        states.device = torch.device("meta")
        states.rows = [
            torch.zeros(SLOTS + 1, *each.shape, dtype=each.dtype, device=states.device) for each in states.states
        ]
        model = replace(told, module=module, configs=configs_of(module), scans=scans_of(module), device=states.device)
        slots = torch.zeros(SEQUENCES, dtype=torch.int64, device="meta")
        seen: list[str] = []

        def attend(index: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            seen.extend(each.device.type for each in (q, k, v))
            assert {each.dtype for each in (q, k, v)} == {torch.bfloat16}
            return torch.empty(len(q), q[0].numel(), dtype=q.dtype, device=q.device)

        cache = states.cache(None)
        ids = torch.zeros(SEQUENCES, TOKENS, dtype=torch.int64, device="meta")
        positions = torch.arange(TOKENS, device="meta").expand(SEQUENCES, -1)
        model.forward_batch(ids, positions, cache, attend)
        states.keep(slots, cache)
        logits = model.forward_slots(slots, slots, slots + TOKENS, attend)
        assert (logits.shape, logits.device.type) == ((SEQUENCES, told.vocabulary), "meta")
        assert set(seen) <= {"meta"}
        assert len(seen) == 2 * 3 * len(told.layers)
