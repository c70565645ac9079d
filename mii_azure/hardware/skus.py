"""Azure ML's managed online inference instance types: dated data and lookup."""

import json
import re
from difflib import SequenceMatcher, get_close_matches
from functools import cache
from importlib.resources import files
from typing import Any

from pydantic import BaseModel, ConfigDict

from mii_azure.errors import UnknownInstanceType


class Gpu(BaseModel):
    """GPU model; data-sheet ceilings, dense, in the units of the field names."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    compute_capability: float
    bandwidth_gb_s: float
    half_tflops: float
    single_tflops: float
    accelerator_type: str | None = None  # Azure's name of it in deployment templates, where it documents one


class Processor(BaseModel):
    """A processor that a series of instance types runs on, with the instruction sets that passes ask for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    sets: tuple[str, ...]


class Sku(BaseModel):
    """Facts of one instance type."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str  # canonical spelling, e.g. Standard_NC4as_T4_v3
    cores: int
    ram_gb: float
    disk_gb: float  # local storage, GiB
    gpus: float  # below 1 if several machines share a GPU
    gpu_memory_gb: float  # of one GPU, or of the share of it
    gpu: Gpu | None
    quota_family: str
    skip_20_percent: bool  # Azure reserves no 20 % of quota for upgrades
    retired: str | None  # date on which Azure retired the series
    retires: str | None  # date for which Azure has announced that
    processors: tuple[Processor, ...] = ()  # of which Azure chooses one; empty: not recorded
    assumed_like: str = ""  # known size whose memory and GPUs are assumed, where nothing but the name is known

    @property
    def whole_gpus(self) -> int:
        return int(self.gpus)

    def __str__(self) -> str:
        gpu = f"{self.gpus:g} x {self.gpu.name}, " if self.gpu else ""
        return f"{self.name} ({gpu}{self.cores} cores, {self.ram_gb:g} GB RAM)"


@cache
def load_data(name: str) -> Any:
    """Parse `data/<name>.json` of the package."""
    return json.loads(files("mii_azure").joinpath("data", f"{name}.json").read_text(encoding="utf-8"))


@cache
def all_skus() -> dict[str, Sku]:
    """Every instance type by canonical name, in the data's order."""
    data = load_data("skus")
    gpus = {key: Gpu(**fields) for key, fields in data["gpus"].items()}
    processors = {key: Processor(**fields) for key, fields in data["processors"].items()}
    found: dict[str, Sku] = {}
    for family in data["families"]:
        shared: dict[str, Any] = {
            "gpu": gpus.get(family.get("gpu", "")),
            "quota_family": family["quota_family"],
            "skip_20_percent": family.get("skip_20_percent", False),
            "retired": family.get("retired"),
            "retires": family.get("retires"),
            "processors": tuple(processors[key] for key in family.get("processors", ())),
        }
        for row in family["sizes"]:
            fields: dict[str, Any] = {"gpus": 0, "gpu_memory_gb": 0} | dict(zip(data["columns"], row, strict=False))
            found[row[0]] = Sku(**fields, **shared)
    return found


#: Sentence for who asks for an instance type that the data do not know.
DESCRIBE = (
    "One that is newer than the data: describe it by --cores, --ram, --disk, and of GPUs --gpus, --gpu-memory,"
    " --gpu-bandwidth, --gpu-tflops, --gpu-capability."
)
_SIZE = re.compile(r"([a-z]+)([0-9]{1,6})(?![0-9])")  # series and cores, as in nc24ads_a100_v4
_NEAR = 3


def _apart(name: str, asked: re.Match[str], key: str) -> tuple[int, float]:
    """Distance of a size of the same series from the requested one: by cores, then by spelling."""
    own = _SIZE.match(name[len("standard_") :])
    cores = abs(int(own[2]) - int(asked[2])) if own else 0
    return cores, -SequenceMatcher(None, name, f"standard_{key}").ratio()


def nearest(name: str) -> str:
    """Sentence of the instance types whose names are like `name`, none of them retired; empty if there are none.

    Those of the same series (NC, ND, ...) by their cores come before those that are only spelled alike.
    """
    canonical = {known.lower(): known for known, sku in all_skus().items() if not sku.retired}
    key = name.strip().lower().removeprefix("standard_")
    alike = get_close_matches(f"standard_{key}", canonical, n=_NEAR, cutoff=0.6)
    if asked := _SIZE.match(key):
        series = [
            each for each in canonical if (found := _SIZE.match(each[len("standard_") :])) and found[1] == asked[1]
        ]
        series.sort(key=lambda each: _apart(each, asked, key))
        alike = list(dict.fromkeys([*series, *alike]))
    near = alike[:_NEAR] if key else []
    return f"Nearest: {', '.join(canonical[match] for match in near)}." if near else ""


def find_sku(name: str) -> Sku:
    """Find the instance type called `name`, ignoring case; raise UnknownInstanceType with the nearest names."""
    canonical = {name.lower(): name for name in all_skus()}
    key = name.strip().lower()
    if key in canonical:
        return all_skus()[canonical[key]]
    if f"standard_{key}" in canonical:
        return all_skus()[canonical[f"standard_{key}"]]
    hint = nearest(name) or "Leave it out, and the plan chooses."
    recorded = load_data("skus")["recorded"]
    raise UnknownInstanceType(
        f"The data of {recorded} know no instance type {name!r} of managed endpoints.", f"{hint} {DESCRIBE}"
    )
