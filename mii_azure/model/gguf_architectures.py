"""Architectures of GGUF as transformers' models: names, shapes and settings, read from data/gguf.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from mii_azure.hardware.skus import load_data
from mii_azure.model.gguf_header import Entry, Header

#: What undoes how a tensor is stored; the rest is in gguf_order.py.
_UNDO = ("T", "row", "axis", "each", "grouped", "one", "decay", "heads", "values", "mixed", "convolved", "columns")
#: Halves of one tensor of transformers, which are stored apart: rows one after the other, or columns in turns.
_FIRST, _SECOND = ("upper", "even"), ("lower", "odd")
_OF_MODEL = ("token_embd", "output", "position_embd")


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
    yarn: dict[str, Any] = {}  # numbers of YaRN that every published model of the architecture has
    no_rope_every: int | None = None
    full_every: int | None = None  # of these layers one sees all keys
    scaled_by_width_at: int | None = None  # layers of the one model whose scale is by its width, not by its heads'
    few: str = "sliding_attention"  # kind of the layers that do not see all keys
    undo: str = ""
    tensors: Mapping[str, str]
    of_kinds: Mapping[str, Mapping[str, str]] = {}  # tensors that only layers of a kind have


class TensorPlace(NamedTuple):
    """Place of a stored tensor in transformers' model."""

    name: str  # with {} for an expert's number
    shape: tuple[int, ...]  # of all experts
    undo: str  # one of _UNDO, or a half, or ""

    @property
    def wide(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes in a checkpoint of transformers; two halves are one there, counted with the first."""
        if self.undo == "each":
            yield from ((self.name.format(expert), self.shape[1:]) for expert in range(self.shape[0]))
        elif self.undo not in _SECOND:
            yield self.name, self.shape

    @property
    def is_half(self) -> bool:
        """True if another stored tensor has the rest of transformers'."""
        return self.undo in (*_FIRST, *_SECOND)

    @property
    def within(self) -> tuple[slice, ...]:
        """Part of transformers' tensor that this one is; all of it but for a half."""
        start = int(self.undo in _SECOND)
        if self.undo in ("upper", "lower"):
            half = self.shape[-2] // 2
            return (..., slice(start * half, (start + 1) * half), slice(None))  # type: ignore[return-value]
        return (..., slice(start, None, 2)) if self.is_half else (...,)  # type: ignore[return-value]

    @property
    def stored(self) -> tuple[int, ...]:
        """Shape in the GGUF file."""
        *more, rows, columns = 1, 1, *self.shape
        if self.undo in ("upper", "lower"):
            rows //= 2
        if self.undo in ("even", "odd"):
            columns //= 2
        if self.undo == "T" or (self.undo in ("even", "odd") and len(self.shape) == 3):
            rows, columns = columns, rows
        return (*more, rows, columns)[-len(self.shape) :]

    def fits(self, shape: tuple[int, ...]) -> bool:
        """True if a stored tensor has the place's shape, or the one without an axis of 1."""
        flat = self.undo in ("row", "axis", "convolved")
        return shape == self.stored or (flat and shape == tuple(each for each in self.shape if each != 1))


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
    kinds = config.get("layer_types", ()) if found.of_kinds else ()
    tables = [(found.tensors, list(range(blocks)))]
    tables += [
        (tensors, [at for at, each in enumerate(kinds) if each == kind]) for kind, tensors in found.of_kinds.items()
    ]
    for tensors, layers in tables:
        for name, place in ((name, _place(told, sizes)) for name, told in tensors.items() if name not in left_out):
            if name.startswith(_OF_MODEL):
                every[name] = place
            else:
                every |= {f"blk.{at}.{name}": place._replace(name=f"{found.layers}{at}.{place.name}") for at in layers}
    if config["tie_word_embeddings"]:
        del every["output.weight"]
    return every


def has_tensor(tensors: list[Entry], name: str) -> bool:
    """True if the first layer has a tensor of that name."""
    return any(each.name == f"blk.0.{name}" for each in tensors)


def _place(told: str, sizes: Mapping[str, int]) -> TensorPlace:
    name, *words = told.split()
    undo = words.pop() if words[-1] in (*_UNDO, *_FIRST, *_SECOND) else ""
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
