"""Stable Diffusion's denoising loop as one CUDA graph per step, over buffers that never move.

Whatever no step changes is computed once per image: the keys and values of the prompt for every cross-attention in one
product, the projections of all time embeddings in another, and the scheduler's table. A step is then: one row of the
table times the history, the UNet, guidance, one row written to the history. Off CUDA the same code runs without graphs.
"""

import contextlib
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from scoring.diffusion.graph_recorder import KEPT, Recorder, Replayed
from scoring.diffusion.linear_scheduler import Schedule
from scoring.diffusion.pipeline import guided
from scoring.passes.base import PassRefused

logger = logging.getLogger("mii_azure.passes")

_ROOM = (64, 128, 256, 512, 1024)  # steps that buffers are made for
_TRIALS = 20


class Cut(nn.Module):
    """Stand-in for a residual block's time projection: its slice of a row that holds all of them."""

    def __init__(self, start: int, stop: int) -> None:
        super().__init__()
        self.start, self.stop = start, stop

    def forward(self, row: Tensor) -> Tensor:
        return row[:, self.start : self.stop]


class SelfAttention:
    """Queries, keys and values from one product."""

    def __init__(self, attention: Any) -> None:
        parts = (attention.to_q, attention.to_k, attention.to_v)
        self.weight = torch.cat([part.weight for part in parts])
        self.bias = None if parts[0].bias is None else torch.cat([part.bias for part in parts])

    def __call__(self, attention: Any, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        both = functional.linear(hidden_states, self.weight, self.bias)
        query, key, value = both.view(*both.shape[:2], 3, attention.heads, -1).permute(2, 0, 3, 1, 4)
        return _attend(attention, query, key, value)


class CrossAttention:
    """Cross-attention with slices of keys and values that were computed before the loop."""

    def __init__(self, start: int, stop: int) -> None:
        self.start, self.stop = start, stop

    def __call__(
        self, attention: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, *_: Any, **__: Any
    ) -> Tensor:
        query = attention.to_q(hidden_states)
        query = query.view(*query.shape[:2], attention.heads, -1).transpose(1, 2)
        keys_values = encoder_hidden_states[:, :, self.start : self.stop]
        key, value = keys_values.view(*keys_values.shape[:2], 2, attention.heads, -1).permute(2, 0, 3, 1, 4)
        return _attend(attention, query, key, value)


def _attend(attention: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention over [B, heads, S, d] each, projected: [B, S, heads x d]; without dropout, which is inactive here."""
    attended = functional.scaled_dot_product_attention(query, key, value)
    projected: Tensor = attention.to_out[0](attended.transpose(1, 2).flatten(2))
    return projected


def _refuse(attention: Any) -> str:
    """Reason why these classes cannot compute an attention; empty if they can."""
    extra = ("spatial_norm", "group_norm", "norm_q", "norm_k", "norm_cross", "residual_connection")
    named = [name for name in extra if getattr(attention, name, None)]
    if named:
        return f"an attention with {named[0]}"
    return "an attention that scales its output" if attention.rescale_output_factor != 1 else ""


@dataclass
class Conditions:
    """Products computed before a loop, and the undo that restores the plain UNet."""

    prompt: Tensor  # [sum of all keys and values, D]
    time: Tensor  # [sum of all channels, E]
    time_bias: Tensor
    replaced: int
    undo: Callable[[], None]


@torch.no_grad()
def rewire(unet: Any) -> Conditions:
    """Put the classes above into a UNet; raises PassRefused, with it unchanged, for parts it does not know."""
    blocks = [m for m in unet.modules() if type(m).__name__ == "ResnetBlock2D" and m.time_emb_proj is not None]
    attentions = [(name, m) for name, m in unet.named_modules() if type(m).__name__ == "Attention"]
    reasons = [_refuse(attention) for _, attention in attentions]
    reasons += ["a block that scales by time" for block in blocks if block.time_embedding_norm != "default"]
    if any(reasons):
        raise PassRefused(f"the UNet has {next(filter(None, reasons))}, which is not covered")
    undo: list[Callable[[], None]] = []
    time_weights, prompt_weights, biases = [], [], []
    start = 0
    for block in blocks:
        plain = block.time_emb_proj
        undo.append(_setter(block, time_emb_proj=plain, skip_time_act=block.skip_time_act))
        time_weights.append(plain.weight)
        biases.append(plain.bias)
        stop = start + plain.out_features
        block.time_emb_proj, block.skip_time_act = Cut(start, stop), True
        start = stop
    start = 0
    for _, attention in attentions:
        undo.append(_setter(attention, processor=attention.processor))
        if not attention.is_cross_attention:
            attention.processor = SelfAttention(attention)
            continue
        stop = start + 2 * attention.to_k.out_features
        prompt_weights += [attention.to_k.weight, attention.to_v.weight]
        attention.processor = CrossAttention(start, stop)
        start = stop

    def undo_all() -> None:
        for back in undo:
            back()

    return Conditions(
        torch.cat(prompt_weights),
        torch.cat(time_weights),
        torch.cat(biases),
        len(blocks) + len(attentions),
        undo_all,
    )


def _setter(target: Any, **values: Any) -> Callable[[], None]:
    def back() -> None:
        for name, value in values.items():
            setattr(target, name, value)

    return back


class Loop:
    """The buffers of one shape, and a step over them."""

    def __init__(self, fast: "Fast", shape: Sequence[int], guided_: bool, room: int, context: int) -> None:
        device, dtype = fast.model.device, fast.model.dtype
        self._fast, self._shape, self._guided = fast, tuple(shape), guided_
        size = shape[0] * shape[1] * shape[2] * shape[3]
        self.history = torch.zeros(room + 1, size, device=device)
        self.inputs = torch.zeros(room, room + 1, device=device)
        self.times = torch.zeros(room, fast.conditions.time.shape[0], device=device, dtype=dtype)
        rows = shape[0] * (2 if guided_ else 1)
        self.prompt = torch.zeros(rows, context, fast.conditions.prompt.shape[0], device=device, dtype=dtype)
        self.guidance = torch.ones(shape[0], device=device) if guided_ else None
        self.at = torch.zeros(1, device=device, dtype=torch.int64)
        self.replay: Callable[[], Any] = self.step

    def start(self, table: Schedule, noise: Tensor, times: Tensor, prompt: Tensor, guidance: Tensor | None) -> None:
        """Fill the buffers for one batch; none of it waits for the device."""
        n = table.steps
        self.history.zero_()
        self.history[0] = noise.flatten()
        self.inputs.zero_()
        self.inputs[:n, : n + 1] = table.inputs.to(noise.device, non_blocking=True)
        self.times[:n] = times
        self.prompt.copy_(prompt)
        if self.guidance is not None:
            self.guidance.copy_(guidance if guidance is not None else self.guidance)
        self.at.zero_()

    def step(self) -> None:
        latents = (self.inputs.index_select(0, self.at) @ self.history).view(self._shape)
        given = torch.cat([latents, latents]) if self._guided else latents
        given = given.to(self.times.dtype, memory_format=torch.channels_last)
        noise = self._fast.unet(self._shape, given, self.times.index_select(0, self.at), self.prompt)
        noise = guided(noise.float(), self.guidance)
        self.at += 1
        self.history.index_copy_(0, self.at, noise.reshape(1, -1))


class Fast:
    """A `StableDiffusion` whose `denoise`, `decode` and `embed` run as graphs; `undo` gives the plain one back."""

    def __init__(self, model: Any) -> None:
        self.model = model
        table = model.denoiser.table(4)
        if table is None:
            raise PassRefused("the scheduler clips or adds noise, so its steps are no table")
        unet = model.unet
        if unet.config.center_input_sample or unet.encoder_hid_proj is not None or unet.time_embed_act is not None:
            raise PassRefused("the UNet prepares its inputs in a way that is not covered")
        self._time = (unet.time_proj, unet.time_embedding)
        self.conditions = rewire(unet)
        self.replaced = self.conditions.replaced
        self._loops: OrderedDict[Any, Loop] = OrderedDict()
        self._recorder = Recorder(model.device)
        self._compiled: Callable[..., Tensor] | None = None
        self._compiled_shape: tuple[int, ...] = ()
        self._backend: Any = None
        self.detail = "one graph a step"
        unet.get_time_embed = lambda sample, timestep: timestep
        unet.time_embedding = _Second()
        for part in (unet, model.vae):
            part.to(memory_format=torch.channels_last)
        self._decode = Replayed(self._recorder, model.decode)
        self._embed = Replayed(self._recorder, model.embed)
        model.denoise, model.decode, model.embed = self.denoise, self._decode, self._embed

    def undo(self) -> None:
        model = self.model
        model.denoise = model.denoise_plainly
        del model.decode, model.embed, model.unet.get_time_embed
        model.unet.time_embedding = self._time[1]
        self.conditions.undo()
        self._loops.clear()
        for part in (model.unet, model.vae):
            part.to(memory_format=torch.contiguous_format)

    def unet(self, shape: tuple[int, ...], given: Tensor, times: Tensor, prompt: Tensor) -> Tensor:
        """The UNet over prepared conditions; compiled if its one shape was."""
        if self._compiled is not None and shape == self._compiled_shape:
            return self._compiled(given, times, prompt)
        return self._plain(given, times, prompt)

    def _plain(self, given: Tensor, times: Tensor, prompt: Tensor) -> Tensor:
        noise: Tensor = self.model.unet(given, times, encoder_hidden_states=prompt, return_dict=False)[0]
        return noise

    def denoise(
        self,
        embeddings: Tensor,
        noise: Tensor,
        guidance: Tensor | None,
        steps: int,
        generators: Sequence[torch.Generator],
        stopped: Callable[[], bool] = lambda: False,
    ) -> Tensor:
        """Denoise as `StableDiffusion.denoise_plainly` does, on the thread that made this object."""
        table = self.model.denoiser.table(steps)
        if table is None:
            raise PassRefused("the scheduler's steps are no table")
        loop = self.loop(noise.shape, guidance is not None, table.steps, embeddings.shape[1])
        prompt = functional.linear(embeddings, self.conditions.prompt)
        loop.start(table, noise, self.times(table), prompt, guidance)
        for _ in range(table.steps):
            if stopped():
                break
            loop.replay()
        final = torch.zeros(loop.history.shape[0], device=noise.device)
        final[: table.steps + 1] = table.final.to(noise.device, non_blocking=True)
        return (final @ loop.history).view_as(noise)

    def times(self, table: Schedule) -> Tensor:
        """Time projections of all blocks at all steps [n, sum of channels]."""
        project, embed = self._time
        dtype = self.model.dtype
        waves = project(table.timesteps.to(self.model.device)).to(dtype)
        return functional.linear(functional.silu(embed(waves)), self.conditions.time, self.conditions.time_bias)

    def loop(self, shape: Sequence[int], guided_: bool, steps: int, context: int) -> Loop:
        """The recorded loop of a shape, made on first use."""
        room = next((room for room in _ROOM if steps <= room), steps)
        key = (*shape, guided_, room, context)
        loop = self._loops.get(key)
        if loop is None:
            while len(self._loops) >= KEPT:
                self._loops.popitem(last=False)
            loop = Loop(self, shape, guided_, room, context)
            with _attention(self._backend):
                loop.replay = self._recorder.record(loop.step)
            loop.at.zero_()
            self._loops[key] = loop
        self._loops.move_to_end(key)
        return loop

    def choose(self) -> None:
        """Time one step of the model's own size under each attention kernel, then compiled; keep the fastest."""
        from torch.nn.attention import SDPBackend

        height, width = self.model.native_size
        scale = self.model.scale
        shape = (1, self.model.unet.config.in_channels, height // scale, width // scale)
        began = time.perf_counter()
        times = {
            backend: self._milliseconds(shape, backend, compiled=False)
            for backend in (None, SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION)
        }
        self._backend = best = min(times, key=lambda backend: times[backend])
        if math.isinf(times[best]):
            raise PassRefused("no step could be captured on this device")
        compiled = self._milliseconds(shape, best, compiled=True)
        if not compiled < times[best]:
            self._compiled, self._compiled_shape = None, ()
        self._loops.clear()
        measured = {backend.name.lower() if backend else "default": ms for backend, ms in times.items()} | {
            "compiled": compiled
        }
        each = ", ".join(f"{name} {ms:.2f} ms" for name, ms in measured.items() if math.isfinite(ms))
        self.detail = f"a step of {height} x {width}: {each}; choosing took {time.perf_counter() - began:.0f} s"

    def _milliseconds(self, shape: tuple[int, ...], backend: Any, compiled: bool) -> float:
        """Median time of a guided step; infinite where it cannot be captured this way."""
        self._loops.clear()
        self._backend, self._compiled_shape = backend, shape if compiled else ()
        self._compiled = torch.compile(self._plain, dynamic=False) if compiled else None
        try:
            loop = self.loop(shape, True, 1, self.model.text_encoder.config.max_position_embeddings)
        except Exception as error:  # a kernel that is not available here is no candidate
            logger.info("diffusion: %s is no candidate: %s", backend, str(error).split("\n")[0][:200])
            return math.inf
        taken = []
        for _ in range(_TRIALS):
            loop.at.zero_()
            torch.cuda.synchronize()
            began = time.perf_counter()
            loop.replay()
            torch.cuda.synchronize()
            taken.append(time.perf_counter() - began)
        return 1e3 * median(taken)


@contextlib.contextmanager
def _attention(backend: Any) -> Iterator[None]:
    """Restrict attention to this kernel, with a fallback that always exists for shapes that it does not take."""
    if backend is None:
        yield
        return
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel([backend, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH], set_priority=True):
        yield


class _Second(nn.Module):
    """Stand-in for the time embedding: its input is already a row of projections."""

    def forward(self, row: Tensor, condition: Any = None) -> Tensor:
        return row
