"""Loads the adapters of a bundle beside its base: read, compared with the loaded modules, stacked."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scoring.errors import LoadError, WeightsUnreadable
from scoring.lora.bank import AdapterBank
from scoring.lora.peft_folder import CONFIG, WEIGHTS, LowRank, UnservedAdapter, describe, require_products
from scoring.lora.stacks import LowRankStack
from scoring.strict_json.files import read_object

FOLDER = "adapters"  # of a bundle's model/, with a folder for each by its name
_AGAIN = "Generate the bundle again."

Found = Mapping[str, tuple[LowRank, Mapping[str, Tensor]]]  # by module


def load_bank(names: Sequence[str], folder: Path, model: Any) -> AdapterBank:
    """Load adapters from the folder of a model, in its type and on its device, and attach them to its modules.

    Raises LoadError for one that is not as generation left it, or that the loaded model has no such products for.
    """
    modules = dict(model.named_modules())
    head = model.get_output_embeddings()
    adapters = [_read(folder / FOLDER / name) for name in names]
    wanted = list(dict.fromkeys(module for each in adapters for module in each))
    stacks = {}
    for name in wanted:
        module = _module(name, modules)
        if module is None or module is head or not isinstance(getattr(module, "weight", None), Tensor):
            raise LoadError(f"An adapter changes {name}, which {type(model).__name__} does not serve one on.", _AGAIN)
        stacks[module] = _stack(name, [each.get(name) for each in adapters], module)
    bank = AdapterBank(tuple(names), stacks)
    bank.attach()
    return bank


def _read(folder: Path) -> Found:
    from safetensors.torch import load_file

    try:
        tensors = load_file(folder / WEIGHTS)
        content = describe(read_object(folder / CONFIG), {name: tuple(each.shape) for name, each in tensors.items()})
        require_products(content)
    except UnservedAdapter as refused:
        raise LoadError(f"The adapter {folder.name} cannot be used: {refused}", _AGAIN) from refused
    except LoadError:
        raise
    except Exception as error:
        raise WeightsUnreadable(f"The adapter {folder.name} cannot be read: {error}.", _AGAIN) from error
    return {each.module: (each, tensors) for each in content.products}


def _module(name: str, modules: Mapping[str, nn.Module]) -> nn.Module | None:
    """Module by the name that an adapter has for it, which may lack, or have, a first part."""
    found = modules.get(name) or modules.get(name.partition(".")[2])
    longer = [each for each in modules if each.partition(".")[2] == name] if found is None else []
    return modules[longer[0]] if len(longer) == 1 else found


def _stack(name: str, found: Sequence[tuple[LowRank, Mapping[str, Tensor]] | None], module: Any) -> LowRankStack:
    """Stack a module's low-rank products, in float32 until each is scaled."""
    rank = max(each[0].rank for each in found if each)
    outputs, inputs = module.weight.shape
    if type(module).__name__ == "Conv1D":
        outputs, inputs = inputs, outputs
    down, up = torch.zeros(len(found), rank, inputs), torch.zeros(len(found), rank, outputs)
    for number, each in enumerate(found):
        if each is None:
            continue
        product, tensors = each
        if (product.inputs, product.outputs) != (inputs, outputs):
            raise LoadError(f"An adapter is for a {name} of another size than {outputs} by {inputs}.", _AGAIN)
        down[number, : product.rank] = tensors[product.down].float()
        up[number, : product.rank] = tensors[product.up].float().T * product.scaling
    if not (torch.isfinite(down).all() and torch.isfinite(up).all()):
        raise WeightsUnreadable(f"An adapter of {name} holds numbers that are not finite.", "Copy the adapter again.")
    weight = module.weight
    return LowRankStack(down.to(weight.device, weight.dtype), up.to(weight.device, weight.dtype))
