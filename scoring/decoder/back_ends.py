"""The back ends of a decoder, by its tier and device, and whether its sums are to have one order."""

from typing import Any

from scoring.decoder.fixed_torch import FixedTorchBackend
from scoring.decoder.generic.model import GenericModel
from scoring.decoder.generic.torch_backend import GenericTorchBackend
from scoring.decoder.kv_cache import KVCache
from scoring.decoder.low_rank import PlainBackend, SlotAdapters
from scoring.decoder.model import DecoderModel
from scoring.decoder.torch_backend import TorchBackend


def plain_backend(
    model: DecoderModel | GenericModel, state: KVCache, fixed: bool, adapters: SlotAdapters
) -> PlainBackend:
    """Return the back end in plain torch."""
    if isinstance(model, GenericModel):
        return GenericTorchBackend(model, state, adapters.rows)
    return (FixedTorchBackend if fixed and model.device.type == "cpu" else TorchBackend)(model, state)


def gpu_backend(
    model: DecoderModel | GenericModel, state: KVCache, drafts: bool, fixed: bool, adapters: SlotAdapters
) -> Any:
    """Return the back end of a GPU; its graphs are captured on use or by `warm_up`."""
    if isinstance(model, GenericModel) and model.recurrent is not None:
        from scoring.decoder.generic.recurrent_cuda import RecurrentCudaBackend

        return RecurrentCudaBackend(model, state, adapters=adapters)
    if isinstance(model, GenericModel):
        from scoring.decoder.generic.cuda_backend import GenericCudaBackend

        return GenericCudaBackend(model, state, drafts, adapters)
    if fixed:
        from scoring.decoder.fixed_order import FixedCudaBackend

        return FixedCudaBackend(model, state)
    from scoring.decoder.cuda_backend import CudaBackend

    return CudaBackend(model, state, drafts=drafts, adapters=adapters)
