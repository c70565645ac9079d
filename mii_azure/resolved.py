"""A resolved model, and the names and kinds of its files: what every source of models shares."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mii_azure.errors import ConfigMissing
from mii_azure.headers import Weights

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")

Source = Literal["folder", "hub", "recorded", "reference"]


@dataclass(frozen=True)
class Model:
    """A resolved model: its settings and what its weight files add up to."""

    name: str  # what the user typed, or the hub id that it stands for
    source: Source
    config: dict[str, Any]
    weights: Weights
    revision: str | None = None  # hub commit
    folder: Path | None = None
    settings: dict[str, Any] = field(default_factory=dict)  # other small files, parsed, by relative path


def is_pickle(name: str) -> bool:
    """Whether a file of that name holds pickled weights (and not, say, a Trainer's arguments)."""
    return name.endswith(PICKLES) and not name.startswith(("training_args", "optimizer", "scheduler", "rng_state"))


def read_settings(path: Path) -> Any:
    """Parse a small JSON file (or return another's text); raise ConfigMissing where it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
        return json.loads(text) if path.suffix == ".json" else text
    except (OSError, ValueError) as error:
        raise ConfigMissing(f"{path.name} cannot be read: {error}.", "Copy the file again.", str(path)) from error
