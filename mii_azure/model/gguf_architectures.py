"""Architectures of GGUF as transformers' models: names, shapes and settings, read from data/gguf.json."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from mii_azure.hardware.skus import load_data
from mii_azure.model.gguf_header import Entry, Header

_LAYER = re.compile(r"blk\.(\d+)\.(.+)")


class Architecture(BaseModel):
    """Architecture by GGUF's name: what config.json has for its keys, and transformers' names of its tensors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model_type: str
    model_class: str = Field(alias="class")
    layers: str  # what stands before a layer's number
    settings: Mapping[str, str]
    required: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()  # keys that say nothing which the tensors do not
    fixed: Mapping[str, Any] = {}
    sized: Mapping[str, tuple[str, int]] = {}  # settings that are an axis of a tensor of the first layer
    flags: Mapping[str, tuple[str, ...]] = {}
    variants: Mapping[str, str] | None = None
    head_dim: bool = False  # whether config.json may have heads wider or narrower than the model
    rope: bool = True
    partial_rope: bool = False
    window_rope: float | None = None  # base of the layers that see a window
    no_rope_every: int | None = None
    full_every: int | None = None  # of these layers one sees all keys, and the others a window
    scaled_by_width_at: int | None = None  # layers of the one model whose scale is by its width, not by its heads'
    undo: str = ""
    tensors: Mapping[str, str]

    def told(self, name: str) -> str | None:
        """Setting of config.json for one of GGUF's keys, without its architecture; None if it has none."""
        return self.settings.get(name)


class TensorPlace(NamedTuple):
    """Place of a stored tensor in transformers' model."""

    name: str  # with {} for an expert's number
    shape: tuple[int, ...]  # of all experts
    undo: str  # "", "T", "row", "each" or "grouped"

    @property
    def wide(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes in a checkpoint of transformers."""
        if self.undo != "each":
            yield self.name, self.shape
        else:
            yield from ((self.name.format(expert), self.shape[1:]) for expert in range(self.shape[0]))

    @property
    def stored(self) -> tuple[int, ...]:
        """Shape in the GGUF file."""
        return self.shape[::-1] if self.undo == "T" else self.shape

    def fits(self, shape: tuple[int, ...]) -> bool:
        """True if a stored tensor has the place's shape, or as a row that of its only axis."""
        return shape == self.stored or (self.undo == "row" and shape == self.shape[1:])


@cache
def architectures() -> dict[str, Architecture]:
    """Every architecture that is converted, by GGUF's name."""
    return {name: _entry(name) for name in load_data("gguf")["architectures"]}


def architecture_of(header: Header) -> Architecture | None:
    """Architecture of a file, or the variant that its keys and tensors tell; None for one that is not converted."""
    found = architectures().get(header.architecture)
    if found is None or not found.variants:
        return found
    names = {each.name for each in header.tensors}
    variant = next((name for sign, name in found.variants.items() if header.fields.get(sign) or sign in names), None)
    return _entry(variant) if variant else found


def places(
    found: Architecture, config: Mapping[str, Any], sizes: Mapping[str, int], blocks: int
) -> dict[str, TensorPlace]:
    """Places of all tensors that a file of these sizes has, by GGUF's names."""
    left_out = {
        tensor
        for flag, tensors in found.flags.items()
        if bool(config[flag.lstrip("!")]) == flag.startswith("!")
        for tensor in tensors
    }
    every: dict[str, TensorPlace] = {}
    for name, told in found.tensors.items():
        place = _place(told, sizes)
        if name in left_out:
            continue
        if name.startswith(("token_embd", "output", "position_embd")) and not name.startswith("output_proj"):
            every[name] = place
        else:
            every |= {
                f"blk.{block}.{name}": place._replace(name=f"{found.layers}{block}.{place.name}")
                for block in range(blocks)
            }
    if config["tie_word_embeddings"]:
        del every["output.weight"]
    return every


def has_tensor(tensors: list[Entry], name: str) -> bool:
    """True if the first layer has a tensor of that name."""
    return any(each.name == f"blk.0.{name}" for each in tensors)


def _place(told: str, sizes: Mapping[str, int]) -> TensorPlace:
    name, *words = told.split()
    undo = words.pop() if words[-1] in ("T", "row", "each", "grouped") else ""
    shape = tuple(sum(int(part) if part.isdigit() else sizes[part] for part in word.split("+")) for word in words)
    return TensorPlace(name, shape, undo)


@cache
def _entry(name: str) -> Architecture:
    return Architecture(**_merged(name))


def _merged(name: str) -> dict[str, Any]:
    """Fields of an entry over those of what it is like."""
    data = load_data("gguf")
    own = dict((data["architectures"] | data["bases"])[name])
    base = _merged(own.pop("like")) if "like" in own else {}
    for field, told in own.items():
        if isinstance(told, dict):
            merged = (base.get(field) or {}) | told
            base[field] = {key: value for key, value in merged.items() if value is not None}
        else:
            base[field] = told
    return base
