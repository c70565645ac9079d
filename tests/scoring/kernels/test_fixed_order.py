"""Kernels of `--batch-invariant`: right, and the same bits whatever the company; interpreted on a CPU, or on a GPU."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a GPU, or TRITON_INTERPRET=1", allow_module_level=True)

from scoring.decoder import fixed_order  # noqa: E402
from scoring.decoder.adapters.builders import FAMILIES, build  # noqa: E402
from scoring.decoder.fixed_order import FixedPrefiller, FixedStep, ProductTile, multiply  # noqa: E402
from scoring.decoder.kv_cache import KVCache, SamplingParams  # noqa: E402
from scoring.decoder.torch_backend import TorchBackend  # noqa: E402
from tests.scoring.decoder.test_adapters import prompt, tiny  # noqa: E402
from tests.scoring.kernels.test_decoder import shuffled, tokens_of  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::DeprecationWarning")
PDL = DEVICE == "cuda"


class Made:
    """A state with the fixed launchers over it."""

    def __init__(self, model: Any, slots: int = 5, length: int = 128) -> None:
        self.state = shuffled(model, slots, length)
        self.prefiller, self.stepper = (
            FixedPrefiller(model, self.state, pdl=PDL),
            FixedStep(model, self.state, slots, pdl=PDL),
        )
        for slot in range(slots):
            self.state.open(slot, SamplingParams())

    def prefill(self, parts: list[tuple[int, int, list[int]]]) -> torch.Tensor:
        told = self.prefiller
        numbers = torch.empty(told.layout.size, dtype=torch.int32)
        for some in (parts,) if DEVICE == "cpu" else ([], parts):  # as before a capture, products are tried on nobody
            told.layout.fill(numbers, some, self.state.slots)
            told.numbers.copy_(numbers)
            told.piece(sum(len(ids) for _, _, ids in parts) + 3)
        return told.logits[: len(parts)].clone()

    def step(self, fed: dict[int, int]) -> torch.Tensor:
        for slot, token in fed.items():
            self.state.tokens[slot] = token
        for slots in ([*fed],) if DEVICE == "cpu" else ([self.state.slots] * len(fed), [*fed]):
            self.stepper.buffers.slots[: len(fed)] = torch.tensor(slots, device=DEVICE).int()
            self.stepper.step(len(fed))
        return self.stepper.buffers.narrow[: len(fed)].clone()


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_fixed_steps_and_prompts_match_the_reference(family: str, tmp_path: Path) -> None:
    hf_model = tiny(family, tmp_path).to(DEVICE)
    model = build(hf_model, 128)
    made, plain = Made(model), KVCache(model, 5, 128)
    reference = TorchBackend(model, plain)
    one, two = prompt(hf_model, 66), prompt(hf_model, 3, 3)
    found = made.prefill([(4, 0, one), (2, 0, two)])
    ids = torch.tensor([*one, *two], device=DEVICE)
    assert (found - reference.prefill([(4, 0, 66), (2, 0, 3)], ids)).abs().max() <= 1e-4
    plain.lengths[4], plain.lengths[2], plain.tokens[4], plain.tokens[2] = 66, 3, 7, 8
    expected = reference.step(torch.tensor([2, 4], device=DEVICE), 128)
    assert (made.step({2: 8, 4: 7}) - expected).abs().max() <= 1e-4


@pytest.mark.parametrize(
    ("family", "span"), [("llama", 64), ("qwen3", 256), ("gemma2", 64), ("bloom", 64), ("olmo3", 64), ("qwen3_moe", 64)]
)
@torch.inference_mode()
def test_rows_are_the_same_bits_in_any_company(
    family: str, span: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone and whole; in pieces beside others; token by token; spans by one program, and by one each."""
    monkeypatch.setattr(fixed_order, "span_keys", lambda length: span)
    if DEVICE == "cpu":  # the interpreter multiplies tiles of other shapes in other orders; the matrix unit does not
        monkeypatch.setattr(fixed_order, "TILES", {1 << 30: 2 * (ProductTile(64, 64, 64, 4, 1),)})
    hf_model = tiny(family, tmp_path).to(DEVICE)
    model = build(hf_model, 128)
    ids, other = prompt(hf_model, 70), prompt(hf_model, 9, 3)
    alone, beside, single = Made(model), Made(model), Made(model)
    first = alone.prefill([(1, 0, ids)])[0]
    after = alone.step({1: 7})[0]
    beside.prefill([(3, 0, other), (4, 0, ids[:33])])
    pieces = beside.prefill([(0, 0, other[:5]), (4, 33, ids[33:])])[1]
    monkeypatch.setattr(fixed_order, "_BUSY", 1)  # a program takes all spans
    together = beside.step({0: 3, 3: 5, 4: 7})[2]
    single.prefill([(2, 0, ids[:67])])
    for token in ids[67:]:
        stepped = single.step({2: token})[0]
    assert torch.equal(first, pieces) and torch.equal(first, stepped)
    assert torch.equal(after, together)
    for slot, made in ((4, beside), (2, single)):
        assert torch.equal(tokens_of(made.state, slot, 70), tokens_of(alone.state, 1, 70))


@pytest.mark.parametrize("rows", [1, 5, 70])
def test_products_are_right_in_every_tile(rows: int) -> None:
    x, weight = torch.randn(rows, 72, device=DEVICE), torch.randn(50, 72, device=DEVICE)
    for tile in (ProductTile(64, 16, 32, 4, 2), ProductTile(64, 64, 64, 4, 2)):
        out = torch.full((rows, 50), 9.0, device=DEVICE)
        multiply(x, weight, out, PDL, {}, tile)
        assert (out - x @ weight.T).abs().max() <= 1e-4
