"""Loads adapters beside their base: read, compared with the loaded modules, and put to places of the bank."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scoring.config import AdapterRef
from scoring.errors import LoadError, WeightsUnreadable
from scoring.lora.bank import AdapterBank
from scoring.lora.peft_folder import (
    CONFIG,
    PICKLE,
    WEIGHTS,
    LowRank,
    UnservedAdapter,
    describe,
    digest,
    require_products,
)
from scoring.lora.stacks import LowRankStack, Pair
from scoring.strict_json.files import parse, typed

FOLDER = "adapters"  # of a bundle's model/, with a folder for each by its name
_AGAIN = "Generate the bundle again."
_COPY = "Copy the adapter's folder again, as peft's save_pretrained wrote it."
_SLACK = 16 << 20  # bytes of a file of weights beside its tensors, and of its config


@dataclass(frozen=True)
class AdapterRoom:
    """Room for adapters that are loaded while the model serves: how many, and of which rank at most; 0: none."""

    places: int = 0
    rank: int = 0


@dataclass(frozen=True)
class ReadAdapter:
    """An adapter as its files say: what it is, and its tensors in host memory."""

    ref: AdapterRef
    products: tuple[LowRank, ...]
    tensors: Mapping[str, Tensor]


def load_bank(folders: Mapping[str, Path], model: Any, room: AdapterRoom | None = None) -> AdapterBank:
    """Load adapters, by the names that rows know them by, in the type and on the device of a model; attach them to it.

    With `room` the modules take others later; a place more than that is there for one that takes another's name.
    Raises LoadError for one that is not as generation left it, or that the loaded model has no such products for.
    """
    room = room or AdapterRoom()
    read = {name: _at_start(folder) for name, folder in folders.items()}
    bank = AdapterBank([""] * (max(len(read), room.places) + bool(room.places)), {}, room.rank)
    pairs = {}
    for name, adapter in read.items():
        try:
            pairs[name] = pairs_of(adapter, model)
        except UnservedAdapter as refused:
            raise LoadError(f"The adapter {name} cannot be used: {refused}", _AGAIN) from refused
    wanted = dict.fromkeys(module for each in pairs.values() for module in each)
    for module in dict.fromkeys((*wanted, *(_takers(model) if room.places else ()))):
        outputs, inputs = _size(module)
        weight: Any = module.weight
        bank.stacks[module] = LowRankStack(inputs, outputs, weight)
    for place, (name, own) in enumerate(pairs.items()):
        bank.room = bank.room and max(bank.room, *(len(down) for down, _ in own.values()))
        bank.put(place, name, own)
    bank.attach()
    return bank


def _at_start(folder: Path) -> ReadAdapter:
    try:
        return read_adapter(folder.name, folder)
    except UnservedAdapter as refused:
        raise LoadError(f"The adapter {folder.name} cannot be used: {refused}", _AGAIN) from refused
    except (OSError, ValueError) as error:
        raise WeightsUnreadable(f"The adapter {folder.name} cannot be read: {error}.", _AGAIN) from error


def read_adapter(name: str, folder: Path, most: int = 0) -> ReadAdapter:
    """Read an adapter's two files, at most so many bytes each, once: what is hashed is what is loaded.

    Raises UnservedAdapter for one that this version does not serve beside a base, OSError and ValueError for a file
    that cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    files = {each: _bytes(folder, each, most) for each in (CONFIG, WEIGHTS)}
    try:
        config = typed(parse(files[CONFIG]), dict, "it")
    except (TypeError, ValueError) as error:
        raise UnservedAdapter(f"{CONFIG} cannot be read: {error}.", _COPY) from error
    try:
        tensors = load(files[WEIGHTS])
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"{WEIGHTS} is damaged: {error}") from error
    odd = next((each for each, tensor in tensors.items() if not tensor.is_floating_point()), None)
    if odd:
        raise UnservedAdapter(f"{odd} is of the type {tensors[odd].dtype}, which no adapter is served from.")
    content = describe(config, {each: tuple(tensor.shape) for each, tensor in tensors.items()})
    require_products(content)
    ref = AdapterRef(
        name,
        digest({each: hashlib.sha256(raw).hexdigest() for each, raw in files.items()}),
        content.rank,
        len(content.products),
        sum(tensor.numel() for tensor in tensors.values()),
        merged=False,
    )
    return ReadAdapter(ref, content.products, tensors)


def _bytes(folder: Path, name: str, most: int) -> bytes:
    """Content of a file that lies in the folder itself."""
    path, real = folder / name, folder.resolve()
    if not path.is_file():
        pickled = name == WEIGHTS and (folder / PICKLE).is_file()
        told = f"It has pickle weights only ({PICKLE}), which can run any code." if pickled else f"It has no {name}."
        raise UnservedAdapter(told, "Give the folder that peft's save_pretrained wrote, with safetensors.")
    if not path.resolve().is_relative_to(real):
        raise UnservedAdapter(f"{name} is a link that leads out of its folder.", "Copy the file itself.")
    with path.open("rb") as file:
        raw = file.read(most + 1) if most else file.read()
    if most and len(raw) > most:
        raise UnservedAdapter(f"{name} has more than the {most:,} bytes that there is room for.", _COPY)
    return raw


def most_bytes(bank: AdapterBank) -> int:
    """Bytes of the largest adapter that there is room for, in float32 and with what its files hold beside it."""
    return 4 * bank.room * sum(stack.inputs + stack.outputs for stack in bank.stacks.values()) + _SLACK


def pairs_of(adapter: ReadAdapter, model: Any, bank: AdapterBank | None = None) -> dict[nn.Module, Pair]:
    """The matrices of an adapter by the model's modules, in host memory; raises UnservedAdapter.

    With a bank also for one that it has no room for.
    """
    modules, head = dict(model.named_modules()), model.get_output_embeddings()
    found: dict[nn.Module, Pair] = {}
    for product in adapter.products:
        module = _module(product.module, modules)
        weight = getattr(module, "weight", None)
        if module is None or module is head or not isinstance(weight, Tensor) or weight.ndim != 2:
            what = f"It changes {product.module}, which {type(model).__name__} does not serve one on."
            raise UnservedAdapter(what, "Give the adapter of this base.")
        outputs, inputs = _size(module)
        if (product.inputs, product.outputs) != (inputs, outputs):
            told = f"It is for a {product.module} of another size than {outputs} by {inputs}."
            raise UnservedAdapter(told, "Give the adapter of this base.")
        if bank is not None:
            _require_room(product, module, bank)
        down, up = adapter.tensors[product.down].float(), adapter.tensors[product.up].float().T * product.scaling
        if not (torch.isfinite(down).all() and torch.isfinite(up).all()):
            raise UnservedAdapter(f"Its {product.module} holds numbers that are not finite.", _COPY)
        own = module.weight.dtype
        found[module] = down.to(own), up.contiguous().to(own)
    return found


def _require_room(product: LowRank, module: nn.Module, bank: AdapterBank) -> None:
    if module not in bank.stacks:
        raise UnservedAdapter(
            f"It changes {product.module}, on which none can be loaded while the model serves.",
            "Merge it at generation, by --adapter.",
        )
    if product.rank > bank.room:
        raise UnservedAdapter(
            f"{product.module} is of rank {product.rank}; there is room for rank {bank.room}.",
            f"Start the server with --max-adapter-rank {product.rank} or more.",
        )


def _module(name: str, modules: Mapping[str, nn.Module]) -> Any:
    """Module by the name that an adapter has for it, which may lack, or have, a first part."""
    found = modules.get(name) or modules.get(name.partition(".")[2])
    longer = [each for each in modules if each.partition(".")[2] == name] if found is None else []
    return modules[longer[0]] if len(longer) == 1 else found


def _size(module: Any) -> tuple[int, int]:
    """Outputs and inputs of a module's product."""
    first, second = module.weight.shape
    return (second, first) if type(module).__name__ == "Conv1D" else (first, second)


def _takers(model: Any) -> Sequence[nn.Module]:
    """Modules of a model that compute one product each, but for its head."""
    head = model.get_output_embeddings()
    found = [each for each in model.modules() if isinstance(each, nn.Linear) or type(each).__name__ == "Conv1D"]
    return [each for each in found if each is not head and each.weight.is_floating_point()]


def trial_pairs(bank: AdapterBank) -> dict[nn.Module, Pair]:
    """An adapter of random numbers, the same each time, on every module that takes one.

    It changes outputs by about a tenth.
    """
    random = torch.Generator().manual_seed(0)
    found = {}
    for module, stack in bank.stacks.items():
        down = torch.randn(bank.room, stack.inputs, generator=random) / math.sqrt(stack.inputs)
        up = 0.002 * math.sqrt(stack.inputs / bank.room) * torch.randn(bank.room, stack.outputs, generator=random)
        found[module] = down, up
    return found
