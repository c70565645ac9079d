"""What a start compiles is all that a request then launches: interpreted kernels, told apart as a compiler would."""

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")
if torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1, and no GPU", allow_module_level=True)

from triton.runtime.interpreter import GridExecutor  # type: ignore[import-not-found,unused-ignore]

from scoring.decoder.decoder import Decoder
from scoring.decoder.gemv_config import GemvTile
from tests.scoring.decoder.test_adapters import prompt, tiny
from tests.scoring.kernels.test_decoder import back_end  # noqa: F401
from tests.scoring.kernels.test_sampler import SAMPLINGS

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::DeprecationWarning")


def kind(value: Any) -> Any:
    """What a kernel is compiled for: type and alignment of memory, the numbers 1 and multiples of 16."""
    if isinstance(value, torch.Tensor):
        return value.dtype, value.data_ptr() % 16 == 0
    if isinstance(value, int) and not isinstance(value, bool):
        return "one" if value == 1 else value % 16 == 0
    return type(value)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> set[Any]:
    """Kernels that are launched, each with what it would be compiled for."""
    found: set[Any] = set()
    run = GridExecutor.__call__

    def noted(self: Any, *arguments: Any, **named: Any) -> Any:
        constants = {name: value for name, value in named.items() if name.isupper()}
        found.add((self.fn.__name__, tuple(map(kind, arguments)), tuple(sorted(constants.items()))))
        return run(self, *arguments, **named)

    monkeypatch.setattr(GridExecutor, "__call__", noted)
    return found


def test_a_bound_request_launches_and_captures_nothing_new(
    back_end: Any,  # noqa: F811
    launched: set[Any],
    tmp_path: Path,
) -> None:
    """Compiling the sampling within masks took the first one 5 to 8 seconds."""
    captured: list[Any] = []

    class Captured(back_end):  # type: ignore[misc]
        def _captured(self, launch: Any) -> Any:
            captured.append(launch)
            launch()
            return SimpleNamespace(replay=launch)

    hf_model = tiny("llama", tmp_path).to(torch.float16)
    decoder = Decoder(hf_model, 4, 64, tokens=256)
    decoder._cuda = own = Captured(decoder.model, decoder.state)
    own.launcher.tiles = {name: GemvTile(64, 64, 1) for name in ("qkv", "out", "gated", "down", "head")}
    own.warm_up([2, 4])
    words = -(-decoder.model.vocabulary // 32)
    masks = torch.full((3, words), -1, dtype=torch.int32)
    for slot, sampling in enumerate(SAMPLINGS[:4]):
        decoder.open(slot, replace(sampling, constrained=slot != 0))
    decoder.prefill_many([(slot, prompt(hf_model, 5)) for slot in range(4)])
    known, before = set(launched), len(captured)
    decoder.sample([0])
    decoder.sample([1, 2, 3], masks)
    for slots in ([0, 1], [0, 1, 2, 3]):  # whose products are of Triton, and cuBLAS's
        decoder.step(slots)
        decoder.sample(slots[1:], masks[: len(slots) - 1])  # all of them at once
        decoder.step(slots)
        decoder.open_logits(slots[1:])
        decoder.sample(slots[1:], masks[: len(slots) - 1])  # after those beside them
        decoder.step(slots)
        decoder.sample([1], added=[{3: 1.0}])
        decoder.sample(slots[2:], masks[: len(slots) - 2], [{5: 2.0}] * len(slots[2:])) if slots[2:] else None
    assert {name for name, *_ in launched} >= {"scan", "choose"}
    assert launched - known == set()
    assert captured[before:] == []
