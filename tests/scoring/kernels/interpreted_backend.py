"""A GPU's back end on a CPU: interpreted kernels, graphs that are the launches themselves, memory as it is."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from scoring.decoder import cuda_backend
from scoring.decoder.prefill import pieces


def interpreted(kind: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a kind of `CudaBackend` as a class for the interpreter; its chunks are of 48 tokens of two parts."""
    for name in ("zeros", "empty"):
        made = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *shape, made=made, pin_memory=False, **options: made(*shape, **options))
    monkeypatch.setattr(torch.cuda, "Event", lambda: SimpleNamespace(record=lambda: None, synchronize=lambda: None))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(cuda_backend, "SideUpload", lambda: SimpleNamespace(send=lambda masks, device: masks))
    monkeypatch.setattr(cuda_backend, "pieces", lambda parts, rows, most: pieces(parts, 48, 2))

    class Uncaptured(kind):  # type: ignore[misc]
        def _captured(self, launch: Any) -> Any:
            return SimpleNamespace(replay=launch)

    return Uncaptured
