"""A `FusedStack` whose layers OpenVINO runs on a CPU: no work on padding outside attention, embeddings in float32."""

from collections.abc import Mapping, Sequence
from importlib import util

import torch
from torch import Tensor

from scoring.encoder.calibration import spans
from scoring.encoder.cpu_ops import BFLOAT16, FLOAT32, INT8, CpuOps, bfloat16_pays, unpacked
from scoring.encoder.fused_model import FusedStack
from scoring.encoder.ops import Packing
from scoring.passes.base import PassRefused

_NEVER = -1e9  # added to the scores of padding; finite, since a row may have nothing else


def installed() -> bool:
    """Whether the package is here."""
    return util.find_spec("openvino") is not None


class OpenVinoStack(FusedStack):
    """A stack in a number format; int8 is calibrated on batches of real text.

    Raises PassRefused if OpenVINO cannot compile it.
    """

    def __init__(self, stack: FusedStack, precision: str, texts: Sequence[Mapping[str, Tensor]] = ()) -> None:
        from scoring.encoder.openvino_graph import EncoderGraph, compiled

        super().__init__(stack.tables, [], stack.heads, stack.act, CpuOps(FLOAT32))
        self.count = len(stack.layers)
        seen = spans(stack, texts) if precision == INT8 else None
        narrow = precision == BFLOAT16 or (precision == INT8 and bfloat16_pays())
        try:
            self._request = compiled(EncoderGraph(stack, seen), torch.get_num_threads(), narrow).create_infer_request()
        except RuntimeError as error:
            raise PassRefused(f"OpenVINO compiles no such model: {str(error).strip().splitlines()[-1]}") from error

    def __call__(self, ids: Tensor, mask: Tensor | None, types: Tensor | None) -> Tensor:
        packing = self.ops.pack(ids, mask, self.tables.pad)
        live = int(packing.bounds[-1])
        hidden = self.ops.embed(ids, types, packing, self.tables).wide
        if live == 0:
            return hidden.new_zeros(*ids.shape, hidden.shape[-1])
        found = self._request.infer(_inputs(hidden, live, packing, self.heads), share_inputs=True, share_outputs=True)
        out = unpacked(torch.from_numpy(found[0]), packing)
        return out.clone() if live == ids.numel() else out  # the next call writes where this one's output lies


def _inputs(hidden: Tensor, live: int, packing: Packing, heads: int) -> dict[str, object]:
    """Inputs of `EncoderGraph` for packed embeddings, as arrays; copies that round tokens up attend as the first."""
    batch, length = packing.batch, packing.length
    tokens = packing.places.long()  # [T], each token's place in [B * S]
    numbers = torch.zeros(batch * length, dtype=torch.int32)
    numbers[tokens[:live]] = torch.arange(live, dtype=torch.int32)
    mask = torch.full((batch * length,), _NEVER)
    mask[tokens[:live]] = 0.0
    each = torch.arange(heads, dtype=torch.int32)
    places = numbers.view(batch, 1, length) * (3 * heads) + each.view(1, heads, 1)
    rows = tokens.div(length, rounding_mode="floor")[:, None]
    back = (rows * heads + each) * length + (tokens % length)[:, None]
    return {
        "hidden": hidden.numpy(),
        "places": places.numpy(),
        "tokens": back.int().numpy(),
        "mask": mask.view(batch, 1, 1, length).numpy(),
    }
