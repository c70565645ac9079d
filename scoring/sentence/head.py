"""Computes pooling and the modules after it, which follow the transformer of a sentence-transformers folder."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from scoring.errors import WeightsUnreadable
from scoring.sentence.folder import PICKLE, WEIGHTS, Layer, SentenceModel
from scoring.sentence.forms import COLBERT, PROJECTION

_AGAIN = "Copy the model's folder again, as sentence-transformers saved it."


def pool(states: Tensor, modes: Sequence[str], skipped: int = 0) -> Tensor:
    """Pool a text's token vectors [S, H], less the first `skipped`, into one of [H] a mode, one behind the other."""
    return torch.cat([_MODES[mode](states[skipped:], skipped) for mode in modes])


def _weighted(states: Tensor, skipped: int) -> Tensor:
    """Mean in which the token at position n counts n times."""
    weights = torch.arange(skipped + 1, skipped + len(states) + 1, device=states.device, dtype=states.dtype)
    return weights @ states / weights.sum()


_MODES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "cls": lambda states, skipped: states[0],
    "max": lambda states, skipped: states.amax(0),
    "mean": lambda states, skipped: states.mean(0),
    "mean_sqrt_len_tokens": lambda states, skipped: states.sum(0) / len(states) ** 0.5,
    "weightedmean": _weighted,
    "lasttoken": lambda states, skipped: states[-1],
}


class Residual(nn.Module):
    """A linear layer with its activation, and its input added to what comes out."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.linear = nn.Linear(layer.inputs, layer.outputs, bias=layer.bias)
        self.activation = getattr(nn, layer.activation)()
        self.added = layer.residual
        if layer.residual and layer.inputs != layer.outputs:
            self.residual = nn.Linear(layer.inputs, layer.outputs, bias=False)

    def forward(self, vectors: Tensor) -> Tensor:
        """Map [B, in] to [B, out]."""
        found: Tensor = self.activation(self.linear(vectors))
        if not self.added:
            return found
        return found + (self.residual(vectors) if hasattr(self, "residual") else vectors)


class Normed(nn.Module):
    """Layer normalisation of a vector, under the names that sentence-transformers gives its weights."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(layer.inputs)

    def forward(self, vectors: Tensor) -> Tensor:
        """Map [B, D] to [B, D]."""
        normed: Tensor = self.norm(vectors)
        return normed


class Unit(nn.Module):
    """Scales vectors to unit length."""

    def forward(self, vectors: Tensor) -> Tensor:
        """Map [B, D] to [B, D]."""
        return nn.functional.normalize(vectors, dim=-1)


@dataclass(frozen=True)
class Head:
    """Settings of a folder, and its modules after the pooling with their weights, in float32."""

    told: SentenceModel
    layers: nn.Sequential  # without a last Normalize
    dimension: int  # numbers in a vector

    def finish(self, pooled: Sequence[Tensor]) -> list[Tensor]:
        """Take pooled vectors through the modules, except a last Normalize."""
        if not pooled or not len(self.layers):
            return list(pooled)
        return list(self.layers.to(pooled[0].device)(torch.stack(list(pooled))))


def build(told: SentenceModel, folder: Path, hidden: int, allow_pickle: bool) -> Head:
    """Build the modules of a folder whose transformer has `hidden` numbers a token.

    Raises Unserved for modules that do not fit each other, WeightsUnreadable for their weights.
    """
    dimension = told.dimension(hidden)
    layers = told.layers[:-1] if told.normalize else told.layers
    made = [Unit() if layer.module.kind == "Normalize" else _loaded(layer, folder, allow_pickle) for layer in layers]
    return Head(told, nn.Sequential(*made).eval().requires_grad_(False), dimension)


def _loaded(layer: Layer, folder: Path, allow_pickle: bool) -> nn.Module:
    made = Residual(layer) if layer.module.kind == "Dense" else Normed(layer)
    inline = layer.module.type == COLBERT
    path = layer.module.path or "the model's folder"
    weights = _weights(folder / layer.module.path, path, allow_pickle, PROJECTION if inline else "")
    try:
        made.load_state_dict(weights)
    except (RuntimeError, TypeError, AttributeError) as error:
        said = str(error).splitlines()[-1].strip().rstrip(".")[:200]
        raise WeightsUnreadable(f"The weights in {path} are not those of its config.json: {said}.", _AGAIN) from error
    return made.float()


def _weights(folder: Path, name: str, allow_pickle: bool, only: str = "") -> dict[str, Tensor]:
    """Weights of a module, or `only` one, from safetensors, or from a pickle where that is allowed."""
    from safetensors import safe_open

    try:
        if (folder / WEIGHTS).is_file():
            with safe_open(folder / WEIGHTS, "pt") as file:
                return {key: file.get_tensor(key) for key in set(file.keys()) if only in ("", key)}
        if (folder / PICKLE).is_file() and allow_pickle:
            found: dict[str, Tensor] = torch.load(folder / PICKLE, map_location="cpu", weights_only=True)
            return {key: value for key, value in found.items() if only in ("", key)}
    except Exception as error:  # each format has its own errors
        said = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise WeightsUnreadable(f"The weights in {name} cannot be read: {said}.", _AGAIN) from error
    if (folder / PICKLE).is_file():
        raise WeightsUnreadable(
            f"{name} has its weights in a pickle only; loading a pickle can run any code it holds.",
            "Save the model again with safetensors, or generate with --allow-pickle if you trust its author.",
        )
    raise WeightsUnreadable(f"{name} has no weights.", _AGAIN)
