"""Steps whose tokens are picked later, over a launcher that only notes what it is asked for."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.triton_stub import launchers_of


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sampling put off, and what was asked of the launcher: rows, and of each row the mask, or nothing."""
    with launchers_of("scoring.decoder.put_off") as put_off:
        asked: list[tuple[int, list[int] | None]] = []

        def sample(rows: int, logits: Any, advance: bool, masks: Any = None, masked: Any = None) -> None:
            assert advance
            asked.append((rows, None if masked is None else masked[:rows].tolist()))

        class Upload:
            def __init__(self, wait: Any, rows: int) -> None:
                self.buffer = torch.zeros(rows, dtype=torch.int32)

            def send(self, target: torch.Tensor, fill: Any) -> None:
                fill(self.buffer)
                target.copy_(self.buffer[: len(target)])

        monkeypatch.setattr(put_off, "PinnedUpload", Upload)
        launcher = SimpleNamespace(
            model=SimpleNamespace(device="cpu"), logits_of=lambda rows: torch.zeros(rows), sample=sample
        )
        beside = SimpleNamespace(send=lambda masks, device: masks)
        read = lambda count: SimpleNamespace(tokens=lambda: [10 + row for row in range(count)])  # noqa: E731
        yield put_off.PutOffSampling(launcher, 8, None, beside, read), asked


def test_all_rows_are_picked_at_once(steps: Any) -> None:
    sampling, asked = steps
    pending = sampling.put_off([5, 2, 7], 4, [2, 7])
    assert sampling.sample([7, 2], torch.zeros(2, 1)).tokens() == [12, 11]
    assert pending.tokens() == [10, 11, 12]
    sampling.finish()
    assert asked == [(4, [-1, 1, 0, -1])]


def test_what_nobody_picks_with_masks_is_picked_without(steps: Any) -> None:
    """When its tokens are read, when a slot of it is changed, and before the next step."""
    sampling, asked = steps
    assert sampling.sample([2], torch.zeros(1, 1)) is None  # nothing was put off
    assert sampling.put_off([5, 2], 2, [2]).tokens() == [10, 11]
    assert sampling.sample([2], torch.zeros(1, 1)) is None  # too late
    sampling.put_off([5, 2], 2, [2])
    assert sampling.sample([5], torch.zeros(1, 1)) is None  # needs no mask here
    sampling.finish_before([3])
    assert len(asked) == 1
    sampling.finish_before([5])
    sampling.put_off([5, 2], 2, [2])
    sampling.finish()
    assert asked == 3 * [(2, None)]
