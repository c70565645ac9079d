"""Resolved model, and the names and kinds of its files: shared by every source of models."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mii_azure.errors import ConfigMissing, WeightsCorrupt
from mii_azure.model.safetensors import Weights
from scoring.strict_json.files import LARGEST_FILE, read_file, read_object

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
#: Tokenizers of bytes or characters, of which transformers has no fast form.
WITHOUT_VOCABULARY = ("ByT5Tokenizer", "CanineTokenizer", "PerceiverTokenizer")

Source = Literal["folder", "hub", "recorded", "reference"]


@dataclass(frozen=True)
class Model:
    """Resolved model: its settings and the sums over its weight files."""

    name: str  # as the user typed it, or the hub id that it stands for
    source: Source
    config: dict[str, Any]
    weights: Weights
    revision: str | None = None  # hub commit
    folder: Path | None = None
    settings: dict[str, Any] = field(default_factory=dict)  # other small files, parsed, by relative path
    names: frozenset[str] = frozenset()  # relative file names, of subfolders those that modules.json names
    transformer: str = ""  # subfolder of config.json, weights and tokenizer, in a sentence-transformers layout


def is_pickle(name: str) -> bool:
    """True if a file of that name holds pickled weights (and not, say, a Trainer's arguments)."""
    return name.endswith(PICKLES) and not name.startswith(("training_args", "optimizer", "scheduler", "rng_state"))


def read_settings(path: Path) -> Any:
    """Parse a small JSON file (or return the text of any other).

    Raises ConfigMissing, or WeightsCorrupt for an index, if it cannot be read or is no object; modules.json may be a
    list.
    """
    if path.suffix not in (".json", ".metadata"):
        return _read_text(path)
    if path.name == "modules.json":
        listed = read_file(path, ConfigMissing)
        if listed is None:
            raise ConfigMissing(
                "modules.json is null, where the model's modules are listed.",
                "Copy the model's folder again, as sentence-transformers saved it.",
                str(path),
            )
        return listed
    return read_object(path, WeightsCorrupt if path.name == INDEX else ConfigMissing)


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(LARGEST_FILE).decode()
    except (OSError, ValueError) as error:
        raise ConfigMissing(f"{path.name} cannot be read: {error}.", "Copy the file again.", str(path)) from error
