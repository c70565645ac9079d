"""A GPU's back end on a CPU: interpreted kernels, graphs that are the launches themselves, memory as it is."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from scoring.decoder import cuda_backend


def uncaptured(monkeypatch: pytest.MonkeyPatch, kind: Any) -> Any:
    """Return a back end of this kind that needs no GPU, as long as the test runs."""
    for name in ("zeros", "empty"):
        made = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *shape, made=made, pin_memory=False, **options: made(*shape, **options))
    monkeypatch.setattr(torch.cuda, "Event", lambda: SimpleNamespace(record=lambda: None, synchronize=lambda: None))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(cuda_backend, "SideUpload", lambda: SimpleNamespace(send=lambda masks, device: masks))

    class Uncaptured(kind):  # type: ignore[misc]
        def _captured(self, launch: Any) -> Any:
            return SimpleNamespace(replay=launch)

    return Uncaptured
