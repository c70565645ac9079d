"""Kernels over a KV cache in FP8 against the plain back end over one: interpreted on a CPU, compiled on a GPU."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a GPU, or TRITON_INTERPRET=1", allow_module_level=True)
if DEVICE == "cuda" and torch.cuda.get_device_capability() < (8, 9):
    pytest.skip("the GPU does not convert to FP8", allow_module_level=True)

from scoring.decoder.adapters.builders import build  # noqa: E402
from scoring.decoder.decode_step import Launcher  # noqa: E402
from scoring.decoder.fixed_order import FixedPrefiller, FixedStep  # noqa: E402
from scoring.decoder.gemv_config import GemvTile  # noqa: E402
from scoring.decoder.kv_cache import FP8, KVCache, SamplingParams, Store  # noqa: E402
from scoring.decoder.prefill import Prefiller  # noqa: E402
from scoring.decoder.torch_backend import TorchBackend  # noqa: E402
from tests.scoring.decoder.test_adapters import prompt, tiny  # noqa: E402
from tests.scoring.kernels.test_decoder import shuffled, tokens_of  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::DeprecationWarning")
PDL = DEVICE == "cuda"


@pytest.fixture(autouse=True)
def hardwares_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter rounds to FP8 as the hardware does: its own loses carries, and small numbers."""
    if DEVICE == "cuda":
        return
    from triton import language as tl  # type: ignore[import-not-found,unused-ignore]
    from triton.runtime import interpreter  # type: ignore[import-not-found,unused-ignore]

    convert = interpreter._convert_float

    def exact(data: Any, source: Any, target: Any, rounding: Any) -> Any:
        if target == tl.float8e4nv and data.dtype == np.float32:
            return torch.from_numpy(data).clamp(-448, 448).to(FP8).view(torch.uint8).numpy()
        if source == tl.float8e4nv and target == tl.float32:
            return torch.from_numpy(data.view(np.uint8)).view(FP8).float().numpy().view(np.uint32)
        return convert(data, source, target, rounding)

    monkeypatch.setattr(interpreter, "_convert_float", exact)


@pytest.mark.parametrize("family", ["llama", "qwen3", "olmo2", "gemma2"])  # heads written in every way, in windows
@pytest.mark.parametrize("fixed", [False, True], ids=["plain", "fixed"])
@torch.inference_mode()
def test_steps_and_prompts_read_and_write_fp8(family: str, fixed: bool, tmp_path: Path) -> None:
    model = build(tiny(family, tmp_path).to(DEVICE), 128)
    state, plain = shuffled(model, 4, dtype=FP8), KVCache(model, 4, 128, dtype=FP8)
    reference = TorchBackend(model, plain)
    prefiller = (FixedPrefiller if fixed else Prefiller)(model, state, pdl=PDL)
    stepper = (FixedStep if fixed else Launcher)(model, state, 4, pdl=PDL)
    if DEVICE == "cpu":
        stepper.tiles = {name: GemvTile(64, 64, 1) for name in ("qkv", "out", "gated", "down", "head")}
    for cache in (state, plain):
        for slot in range(4):
            cache.open(slot, SamplingParams())
    ids, other = prompt(tiny(family, tmp_path), 66), prompt(tiny(family, tmp_path), 5, 3)
    parts = [(2, 0, ids), (1, 0, other)]
    numbers = torch.empty(prefiller.layout.size, dtype=torch.int32)
    for some in ([], parts) if fixed and DEVICE == "cuda" else (parts,):  # as before a capture, on rows of nobody
        prefiller.layout.fill(numbers, some, 4)
        prefiller.numbers.copy_(numbers)
        prefiller.piece(75)
    expected = reference.prefill([(2, 0, 66), (1, 0, 5)], torch.tensor([*ids, *other], device=DEVICE))
    assert close(prefiller.logits[:2], expected)
    for slots in ([2], [1, 2, 3]):
        for cache in (state, plain):
            cache.lengths[:3] = torch.tensor([0, 5, 66])
            cache.tokens[:4] = torch.tensor([7, 8, 9, 10])
        rows = torch.tensor(slots, device=DEVICE)
        wanted = reference.step(rows, 128)
        for some in (torch.full_like(rows, 4), rows) if fixed and DEVICE == "cuda" else (rows,):
            stepper.buffers.slots[: len(slots)] = some.int()
            stepper.step(len(slots))
        held = stepper.buffers.logits if len(slots) <= stepper.gemv_rows else stepper.buffers.narrow
        assert close(held[: len(slots)], wanted)
    for slot, count in ((2, 67), (1, 6)):
        assert close(tokens_of(wide(state), slot, count), tokens_of(wide(plain), slot, count))


def wide(state: KVCache) -> KVCache:
    """The same state, its keys and values in float32."""
    state.stores = {shape: Store(*(each.float() for each in store)) for shape, store in state.stores.items()}
    return state


def close(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    """A number at the edge of two of FP8 may be rounded to either."""
    return bool((found - wanted).norm() <= 0.02 * wanted.norm())
