"""Runs a `GenericModel` on a GPU: its modules between this package's attention kernels, captured in graphs.

A forward that waits for the host, as some mixtures of experts do, cannot be captured: it is launched each time.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from scoring.decoder.cuda_backend import CudaBackend, Launches
from scoring.decoder.decode_step import Launcher
from scoring.decoder.draft_step import DraftStep
from scoring.decoder.generic.model import GenericModel
from scoring.decoder.kv_cache import KVCache
from scoring.decoder.model import Linear, Norm
from scoring.decoder.prefill import Prefiller


class GenericStep(Launcher):
    """Launches one decode step: the model's modules, then sampling."""

    form: Any  # a GenericModel

    def step(self, rows: int) -> None:
        s, b = self.state, self.buffers
        slots = b.slots[:rows].long()
        order = torch.arange(rows, device=slots.device)
        logits = _forward(self, rows, s.tokens[slots], s.lengths[slots].long(), order)
        b.narrow[:rows].copy_(logits)
        self.sample(rows, b.narrow, advance=True)

    def _normed_products(self) -> list[tuple[Norm, Linear]]:
        return []  # norms and products are the model's own


class GenericPrefiller(Prefiller):
    """Launches one chunk of prompts over the model's modules."""

    form: Any  # a GenericModel

    def piece(self, rows: int) -> None:
        self.mark(rows)
        tokens, positions = self.tokens[:rows].long(), self.positions[:rows].long()
        self.logits.copy_(_forward(self, rows, tokens, positions, self.ends[0].long()))


class GenericDraftStep(DraftStep):
    """Launches one step with drafts over the model's modules."""

    form: Any  # a GenericModel

    def step(self, rows: int) -> None:
        logits = _forward(self, rows, self.tokens[:rows].long(), self.positions[:rows].long(), self.order[:rows].long())
        self.buffers.narrow[:rows].copy_(logits)
        self.sample(rows, self.buffers.narrow, advance=True)


class GenericCudaBackend(CudaBackend):
    """`CudaBackend` of the generic tier."""

    def __init__(self, form: GenericModel, state: KVCache, drafts: bool = False) -> None:
        super().__init__(form, state, pdl=False, drafts=drafts)  # the modules' kernels are none that start early

    def _launchers(self, form: Any, state: KVCache, pdl: bool) -> tuple[Launcher, Prefiller]:
        return GenericStep(form, state, state.slots, pdl=pdl), GenericPrefiller(form, state, pdl=pdl)

    def _drafter(self, form: Any, state: KVCache, pdl: bool) -> DraftStep:
        return GenericDraftStep(form, state, pdl=pdl)

    def logits(self, count: int) -> Tensor:
        return self._ran.buffers.narrow[:count]

    def _captured(self, launch: Callable[[], None]) -> Launches:
        self.uncaptured = self.uncaptured or waits_for_the_host(launch)
        return _Launched(launch) if self.uncaptured else super()._captured(launch)


class _Launched:
    """A launch that is repeated from the host."""

    def __init__(self, launch: Callable[[], None]) -> None:
        self.replay = launch


def waits_for_the_host(launch: Callable[[], None]) -> str:
    """Run a launch twice, and tell what it waited for the second time; empty if for nothing.

    Asked before a capture, because one that fails leaves the allocator's pools unusable.
    """
    launch()  # compiles kernels, which waits
    torch.cuda.synchronize()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch calls the mode a prototype
            torch.cuda.set_sync_debug_mode("error")
        launch()
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        return str(error).strip().splitlines()[0]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return ""


def _forward(own: Launcher, rows: int, tokens: Tensor, positions: Tensor, picked: Tensor) -> Tensor:
    """Enqueue the model's forward over rows of tokens, its attention over the cache; logits of the rows picked."""
    form: Any = own.form
    b = own.buffers
    width, heads = form.head_dim, form.heads + 2 * form.kv_heads

    def attend(index: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        layer = form.layers[index]
        torch.cat((q, k, v), 1, out=b.qkv.view(-1)[: rows * heads * width].view(rows, heads, width))
        own.scatter(rows, index, layer)
        own.attention(rows, index, layer)
        return b.attended[:rows]

    found: Tensor = form.forward(tokens, positions, picked, attend)
    return found
