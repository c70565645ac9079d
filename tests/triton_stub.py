"""A stand-in for triton, so that launchers can be made where it is not installed; their kernels do nothing."""

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import MagicMock, patch

_MODULES = ("triton", "triton.language", "triton.language.extra", "triton.language.extra.cuda")


@contextmanager
def launchers_of(module: str) -> Iterator[Any]:
    """Import a module that needs triton; without one, over a stand-in, and forget what was imported over it."""
    if importlib.util.find_spec("triton") is not None:
        yield importlib.import_module(module)
        return
    triton = MagicMock()
    triton.cdiv = lambda count, size: -(-count // size)
    triton.next_power_of_2 = lambda count: 1 << max(0, count - 1).bit_length()
    with patch.dict(sys.modules, {name: triton if name == "triton" else MagicMock() for name in _MODULES}):
        yield importlib.import_module(module)
