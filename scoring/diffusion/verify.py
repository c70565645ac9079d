"""Comparison of a diffusion model with plain diffusers: a few steps on fixed noise, images in float32."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

#: Token ids, steps, height and width, guidance of each row.
Probe = tuple[Tensor, int, tuple[int, int], Tensor | None]


@dataclass(frozen=True)
class DiffusionReference:
    """Images of plain diffusers in float32, and the error of the model's own precision against them."""

    probes: list[Probe]
    images: list[Tensor]
    plain_error: float


def _probes(model: Any) -> list[Probe]:
    """A guided image of the model's size; a small batch of two that differ in guidance; one without guidance."""
    generator = torch.Generator().manual_seed(0)
    config = model.text_encoder.config
    ids = torch.randint(0, config.vocab_size, (4, config.max_position_embeddings), generator=generator)
    small = (8 * model.scale, 8 * model.scale)
    scales = torch.tensor([7.5, 3.0])
    return [
        (ids[:2], 4, model.native_size, scales[:1]),
        (ids, 6, small, scales),
        (ids[:1], 4, small, None),
    ]


def draw(model: Any, probe: Probe) -> Tensor:
    ids, steps, (height, width), guidance = probe
    rows = len(ids) // (1 if guidance is None else 2)
    generators = [torch.Generator().manual_seed(row) for row in range(rows)]
    with torch.inference_mode():
        noise = model.noise(generators, height, width)
        scales = None if guidance is None else guidance.to(noise.device)
        latents = model.denoise(model.embed(ids), noise, scales, steps, generators)
        return torch.cat([model.decode(each[None]) for each in latents]).float().cpu()


def reference(model: Any) -> Callable[[], DiffusionReference]:
    """Draw the probes with plain diffusers, now, in the model's own precision and, if memory allows, in float32."""
    probes = _probes(model)
    expected = plain = [draw(model, probe) for probe in probes]
    if model.dtype != torch.float32 and _room(model):
        expected = [draw(model.widened(), probe) for probe in probes]
    drawn = DiffusionReference(probes, expected, max(_error(a, b) for a, b in zip(plain, expected, strict=True)))
    return lambda: drawn


def _room(model: Any) -> bool:
    if model.device.type != "cuda":
        return True
    needed = 4 * sum(parameter.numel() for parameter in model.parameters())
    return bool(torch.cuda.mem_get_info(model.device)[0] > 1.5 * needed)


def _error(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm().clamp_min(1e-12))


def verify_images(model: Any, reference: DiffusionReference) -> float:
    """Largest relative error (2-norm) of the images; NaN if one is not finite."""
    errors = [
        _error(draw(model, probe), expected) for probe, expected in zip(reference.probes, reference.images, strict=True)
    ]
    return max(errors, key=lambda error: float("inf") if error != error else error)
