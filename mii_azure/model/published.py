"""Quantised checkpoints as they are published, recognised from config and headers; refused where they are not read."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from mii_azure.errors import NotAvailable, WeightsCorrupt
from mii_azure.model import configs
from mii_azure.model.safetensors import Tensor
from scoring.quantization.headers import Stored, Unrecognised
from scoring.quantization.recognised import method_of, recognise


class Published(NamedTuple):
    """Quantised weights of a checkpoint."""

    method: str  # e.g. "awq"
    kind: str  # numbers that most of them are made of, e.g. "int4"
    wide: list[Tensor]  # as a checkpoint that is not quantised would have them


def refuse_unread(config: dict[str, Any]) -> None:
    """Raise NotAvailable if config.json says that the weights are quantised by a method that is not read."""
    told = configs.value(config, "quantization_config", dict)
    if told is None:
        return
    try:
        method_of(told)
    except Unrecognised as error:
        raise NotAvailable(str(error), error.hint) from error


def find(config: dict[str, Any], tensors: Iterable[Tensor]) -> Published | None:
    """Find the quantised weights among the tensors of all files; None if there are none.

    Raises NotAvailable for a method or variant that is not read, and for weights that are not safetensors;
    WeightsCorrupt, with the tensor's name, for a part that is missing or of another type or shape.
    """
    told = configs.value(config, "quantization_config", dict)
    if told is None:
        return None
    stored = {tensor.name: Stored(tensor.dtype, tensor.shape) for tensor in tensors}
    if not stored:
        raise NotAvailable(
            f"The weights are quantised by {told.get('quant_method')} and stored as pickle, which is not read here.",
            "Use a variant with safetensors, or the unquantised model.",
        )
    try:
        found = recognise(told, stored)
    except Unrecognised as error:
        raise (WeightsCorrupt if error.damaged else NotAvailable)(str(error), error.hint) from error
    if not found.weights:
        return None
    wide = [Tensor(name, *each) for name, each in stored.items() if name not in found.dropped]
    wide += [Tensor(weight.name, "F16", weight.shape) for weight in found.weights]
    return Published(method_of(told), found.kind, wide)
