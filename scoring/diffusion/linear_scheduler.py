"""Linear schedulers: steps from noise to latents as one small table, so the loop is matrix products on the device.

Most schedulers are linear: every input of the UNet, and the result, is a weighted sum of the first noise and of the
predictions so far. The weights are read off once, by running the scheduler on the unit vectors of that space.
"""

import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Predict = Callable[[Tensor, Tensor], Tensor]  # (input [B, C, h, w], timestep) -> guided prediction, float32

_PROBES = 3  # random vectors that expose a scheduler that is not linear
_PROBE_SCALE = 10.0  # beyond where schedulers clip
_LINEAR = 1e-3  # relative; the tables are float32, a clipped or noisy step is off by far more


@dataclass(frozen=True)
class Schedule:
    """A linear scheduler's table over (noise, prediction 0, prediction 1, ...), float32, on the CPU."""

    timesteps: Tensor  # [n]
    inputs: Tensor  # [n, n + 1]: the UNet's input at each step
    final: Tensor  # [n + 1]: the latents in the end

    @property
    def steps(self) -> int:
        return len(self.timesteps)


def tabulate(scheduler: Any, steps: int) -> Schedule | None:
    """The table of a diffusers scheduler for `steps` steps; None for one that clips, thresholds or adds noise."""
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(steps, device="cpu")
    n = len(scheduler.timesteps)
    generator = torch.Generator().manual_seed(0)
    probes = _PROBE_SCALE * torch.randn(n + 1, _PROBES, generator=generator, dtype=torch.float64)
    # Row k is noise (k = 0) or prediction k - 1: its own unit vector, then its value in every probe.
    space = torch.cat([torch.eye(n + 1, dtype=torch.float64), probes], 1)[:, :, None, None, None]
    state = space[0] * float(scheduler.init_noise_sigma)
    rows = []
    for step, timestep in enumerate(scheduler.timesteps):
        rows.append(scheduler.scale_model_input(state, timestep).flatten())
        state = scheduler.step(space[step + 1], timestep, state, return_dict=False)[0]
    table = torch.stack([*rows, state.flatten()]).double()
    weights, seen = table[:, : n + 1], table[:, n + 1 :]
    error = (weights @ probes - seen).norm() / seen.norm()
    if not bool(error < _LINEAR):
        return None
    weights = weights.float()
    return Schedule(scheduler.timesteps.clone(), weights[:-1].contiguous(), weights[-1].contiguous())


class Denoiser:
    """Runs a scheduler's loop; tables are kept per number of steps."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler
        self._tables: dict[int, Schedule | None] = {}

    def table(self, steps: int) -> Schedule | None:
        if steps not in self._tables:
            self._tables[steps] = tabulate(self.scheduler, steps)
        return self._tables[steps]

    def __call__(
        self,
        predict: Predict,
        noise: Tensor,
        steps: int,
        generators: Sequence[torch.Generator],
        stopped: Callable[[], bool] = lambda: False,
    ) -> Tensor:
        """Latents, float32, of noise [B, C, h, w]; `generators` serve the schedulers that add noise, one a row.

        When `stopped` returns True between two steps, the latents so far are returned.
        """
        table = self.table(steps)
        if table is None:
            return self._step_by_step(predict, noise, steps, generators, stopped)
        device = noise.device
        timesteps, inputs, final = (part.to(device) for part in (table.timesteps, table.inputs, table.final))
        history = torch.zeros(table.steps + 1, noise.numel(), device=device)
        history[0] = noise.flatten()
        for step in range(table.steps):
            if stopped():
                break
            seen = history[: step + 1]
            latents = (inputs[step, : step + 1] @ seen).view_as(noise)
            history[step + 1] = predict(latents, timesteps[step]).flatten()
        return (final @ history).view_as(noise)

    def _step_by_step(
        self,
        predict: Predict,
        noise: Tensor,
        steps: int,
        generators: Sequence[torch.Generator],
        stopped: Callable[[], bool],
    ) -> Tensor:
        scheduler = copy.deepcopy(self.scheduler)
        scheduler.set_timesteps(steps, device=noise.device)
        takes = inspect.signature(scheduler.step).parameters
        extra = {"generator": list(generators)} if "generator" in takes else {}
        latents = noise * float(scheduler.init_noise_sigma)
        for timestep in scheduler.timesteps:
            if stopped():
                break
            prediction = predict(scheduler.scale_model_input(latents, timestep), timestep)
            latents = scheduler.step(prediction, timestep, latents, return_dict=False, **extra)[0]
        return latents
