"""Models that DeepSpeed-MII was announced with, and facts of them recorded by hand, for planning without a hub."""

from functools import cache
from typing import Any

from pydantic import BaseModel, ConfigDict

from mii_azure.hardware.skus import load_data
from mii_azure.model.resolved import Model
from mii_azure.model.safetensors import DTYPE_BYTES, Weights


class SeedModel(BaseModel):
    """Recorded model; `config` has config.json's own keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    alias: str  # as in the announcement, e.g. "bert-q&a-m1"; "" if it has none
    id: str  # on the hub
    task: str
    parameters: int
    dtype: str
    config: dict[str, Any]

    def model(self) -> Model:
        """Model as `resolving.resolve` returns it, with facts instead of files."""
        weights = Weights(self.parameters, self.parameters * DTYPE_BYTES[self.dtype], self.dtype)
        return Model(self.id, "recorded", self.config, weights)


@cache
def all_models() -> tuple[SeedModel, ...]:
    """Every recorded model, in the announcement's order."""
    data = load_data("seed_models")
    models = []
    for row in data["models"]:
        shape = data["shapes"][row["shape"]]
        config = shape["config"] | row.get("config", {}) | {"architectures": [row["architecture"]]}
        models.append(
            SeedModel(
                alias=row.get("alias", ""),
                id=row["id"],
                task=row["task"],
                parameters=row["parameters"],
                dtype=shape.get("dtype", "float32"),
                config=config,
            )
        )
    return tuple(models)


def find(name: str) -> SeedModel | None:
    """Find the recorded model of that hub id, or None."""
    return next((model for model in all_models() if name == model.id), None)


def names() -> list[str]:
    """Hub ids, for nearest-name hints."""
    return [model.id for model in all_models()]
