"""Reads what a PEFT adapter folder says of itself: adapter_config.json and the names of its tensors; no torch here.

A product's adapter is two matrices, `lora_A` [r, K] and `lora_B` [N, r]; they add scaling * (x A^T) B^T to the outputs
of a product of K inputs and N outputs (LoRA, arXiv 2106.09685). `scaling` is alpha / r, or alpha / sqrt(r) with
`use_rslora` (arXiv 2312.03732). What this version does not compute is refused by name, also where it is only unknown.
"""

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scoring.strict_json.files import typed

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"

MERGE = "Merge it into its base model with peft (merge_and_unload, then save_pretrained), and serve that folder."
_COPY = "Copy the adapter's folder again, as peft's save_pretrained wrote it."
_HEADS = ("lm_head", "embed_out", "output_projection", "proj_out")
_PREFIX = "base_model.model."
_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"
#: Parts of adapters of other kinds, by what their tensors' names contain.
_PARTS = {
    "lora_magnitude_vector": "weights decomposed into length and direction (DoRA)",
    "lora_embedding_": "an adapter of an embedding",
    "lora_B.bias": "a bias of its own (lora_bias)",
    "lora_ga_": "parts of another kind of LoRA",
    "token_adapter": "trained rows of an embedding (trainable_token_indices)",
}
#: Fields that change nothing when an adapter is used, or that are read here.
_KNOWN = frozenset(
    ("alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "ensure_weight_tying",
     "eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern",
     "layers_to_transform", "loftq_config", "lora_alpha", "lora_dropout", "lora_ga_config", "megatron_core",
     "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision",
     "runtime_config", "target_modules", "task_type", "use_rslora")
)  # fmt: skip
#: Ways to begin a training that leave the base's weights as they are; PiSSA, OLoRA and others change them.
_PLAIN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")


class UnservedAdapter(Exception):
    """An adapter that cannot be used: a sentence, and a remedy."""

    def __init__(self, message: str, hint: str = MERGE) -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True)
class LowRank:
    """Adapter of one product: the names of its matrices [rank, inputs] and [outputs, rank], and the factor on it."""

    module: str  # as the base model names it
    down: str
    up: str
    rank: int
    inputs: int
    outputs: int
    scaling: float


@dataclass(frozen=True)
class PeftAdapter:
    """Changes by an adapter: products by low-rank ones, and tensors that it holds whole, by the base's names."""

    products: tuple[LowRank, ...]
    whole: Mapping[str, str]
    copies: Mapping[str, str]  # of the base's tensors that its products change, which peft keeps of an output matrix

    @property
    def rank(self) -> int:
        """Largest rank of its products."""
        return max(each.rank for each in self.products)


def describe(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> PeftAdapter:
    """Describe an adapter by its config and the shapes of its tensors; raises UnservedAdapter, with the name at fault.

    Ranks are those of the tensors, which have to agree with `r` and `rank_pattern`.
    """
    try:
        _refuse_kinds(config)
        ranks, alphas = _Pattern(config, "r", "rank_pattern", 8), _Pattern(config, "lora_alpha", "alpha_pattern", 8)
        root = typed(config.get("use_rslora") or False, bool, "use_rslora")
    except TypeError as error:
        raise UnservedAdapter(f"{CONFIG} cannot mean anything: {error}.", _COPY) from error
    products, whole = [], {}
    for name, inner in {name: _inner(name) for name in sorted(shapes)}.items():
        if inner.endswith(_DOWN):
            product = _product(inner.removesuffix(_DOWN), name, shapes)
            told = ranks.of(product[0])
            if product[3] != told:
                raise UnservedAdapter(f"{name} is of rank {product[3]}, and {CONFIG} says {told:g}.", _COPY)
            factor = alphas.of(product[0]) / (math.sqrt(told) if root else told)
            products.append(LowRank(*product, factor))
        elif not inner.endswith(_UP):
            whole[inner.replace(".base_layer.", ".").replace(".modules_to_save.", ".")] = name
        elif name.removesuffix(_UP) + _DOWN not in shapes:
            raise UnservedAdapter(f"{name} has no {name.removesuffix(_UP) + _DOWN} beside it.", _COPY)
    if not products:
        raise UnservedAdapter(f"{WEIGHTS} holds no lora_A and lora_B of any product.", _COPY)
    changed = [f"{each.module}.weight" for each in products]
    copies = {name: whole.pop(name) for name in changed if name in whole}
    return PeftAdapter(tuple(products), whole, copies)


def digest(files: Mapping[str, str]) -> str:
    """SHA-256 of an adapter, over the SHA-256s of its files by name."""
    lines = "".join(f"{line}\n" for line in sorted(f"{each}  {name}" for name, each in files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def require_products(adapter: PeftAdapter) -> None:
    """Raise UnservedAdapter for one that changes more than products, which cannot be served beside the base."""
    if held := {**adapter.whole, **adapter.copies}:
        name = min(held)
        raise UnservedAdapter(
            f"It holds {name} whole, which is the base's for all requests at once.",
            "Merge it at generation, by --adapter; or train it without modules_to_save and bias.",
        )
    heads = [each.module for each in adapter.products if each.module.rpartition(".")[2] in _HEADS]
    if heads:
        raise UnservedAdapter(
            f"It changes {heads[0]}, the output matrix, which is the base's for all requests at once.",
            "Merge it at generation, by --adapter; or train it without that module.",
        )


def _refuse_kinds(config: Mapping[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise UnservedAdapter(f"It is an adapter of the kind {kind!r}; LORA is served.")
    for name, value in config.items():
        if name not in _KNOWN and value:
            raise UnservedAdapter(f"It is a LoRA with {name}, which this version does not compute.")
    start = config.get("init_lora_weights")
    if start not in _PLAIN_STARTS:
        raise UnservedAdapter(f"It began with init_lora_weights {start!r}, which changes the base's own weights.")


def _inner(name: str) -> str:
    """Name of a stored tensor below the base model; raises UnservedAdapter for a part of another kind of adapter."""
    strange = next((what for part, what in _PARTS.items() if part in name), "")
    if strange:
        raise UnservedAdapter(f"{name} is {strange}, which this version does not compute.")
    if not name.startswith(_PREFIX):
        raise UnservedAdapter(f"{name} is no name that peft gives: those begin with {_PREFIX}.", _COPY)
    return name.removeprefix(_PREFIX)


def _product(module: str, down: str, shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, str, str, int, int, int]:
    up = down.removesuffix(_DOWN) + _UP
    a, b = shapes[down], shapes.get(up)
    if b is None:
        raise UnservedAdapter(f"{down} has no {up} beside it.", _COPY)
    if len(a) != 2 or len(b) != 2:
        raise UnservedAdapter(f"{down} is {list(a)}: adapters of convolutions are not computed here.")
    if a[0] != b[1] or 0 in (*a, *b):
        raise UnservedAdapter(f"{down} {list(a)} and {up} {list(b)} do not fit together.", _COPY)
    return module, down, up, a[0], a[1], b[0]


class _Pattern:
    """Number of the config with exceptions by the ends of modules' names."""

    def __init__(self, config: Mapping[str, Any], name: str, pattern: str, usual: float) -> None:
        self._usual = _number(config.get(name, usual), name)
        told = typed(config.get(pattern) or {}, dict, pattern)
        self._each = {_plain(key, pattern): _number(value, f"{pattern} of {key}") for key, value in told.items()}

    def of(self, module: str) -> float:
        """The number for a module: of the first exception whose key it ends with."""
        found = (value for key, value in self._each.items() if module == key or module.endswith(f".{key}"))
        return next(found, self._usual)


def _number(value: Any, what: str) -> float:
    number = float(typed(value, float, what))
    if not (math.isfinite(number) and number > 0):
        raise TypeError(f"{what} is {value}, which is no factor")
    return number


def _plain(key: str, pattern: str) -> str:
    """Key of a pattern that is a name's end; expressions are not evaluated."""
    if not re.fullmatch(r"\w+(\.\w+)*", key):
        raise UnservedAdapter(f"{pattern} has the expression {key[:80]!r}; names of modules are read.")
    return key
