"""The passes, in the order in which they are applied."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from scoring.config import Deployment, Limits, Optimisation
from scoring.passes.base import Pass
from scoring.schema.registry import task_schema

if TYPE_CHECKING:
    from scoring.passes.tensor_parallel import TensorParallel
    from scoring.passes.zero_inference import ZeroInference


def catalogue(deployment: Deployment) -> list[Pass]:
    """The passes that a deployment's task may have."""
    if deployment.task == "text-to-image":
        return diffusion_passes()
    if task_schema(deployment.task).hears:
        return []
    if task_schema(deployment.task).generative:
        return decoder_passes(deployment.limits, deployment.optimisation)
    return encoder_passes(deployment.optimisation)


def encoder_passes(asked: Optimisation = Optimisation()) -> list[Pass]:  # noqa: B008
    """Passes of encoders: placement of weights, layers, then the whole forward as one graph; on a CPU a single pass."""
    from scoring.passes.compile import Compile
    from scoring.passes.cpu import Cpu
    from scoring.passes.cuda_graph import CudaGraph
    from scoring.passes.deepspeed_kernels import DeepSpeedKernels
    from scoring.passes.fused_encoder import FusedEncoder
    from scoring.passes.w8a8 import W8A8

    fused = FusedEncoder()
    return [
        *_placing_passes(asked),
        DeepSpeedKernels(),
        fused,
        W8A8(fused, forced="w8a8" in asked.on),
        Compile(),
        CudaGraph(),
        Cpu(),
    ]


def _placing_passes(asked: Optimisation) -> "tuple[TensorParallel, ZeroInference]":
    from scoring.passes.tensor_parallel import TensorParallel
    from scoring.passes.zero_inference import ZeroInference

    return TensorParallel(asked.tensor_parallel), ZeroInference(forced="zero_inference" in asked.on)


def decoder_passes(limits: Limits, asked: Optimisation = Optimisation()) -> list[Pass]:  # noqa: B008
    """Passes of decoders; slots as asked for on a GPU, by default and on a CPU one per row of a batch."""
    from scoring.passes.static_decode import StaticDecode
    from scoring.passes.weight_only import WeightOnly

    context = limits.context_length or StaticDecode().max_length
    slicing, offloading = _placing_passes(asked)
    below = None if slicing.name in asked.off else slicing
    rows = limits.max_batch_size
    tokens, share = limits.kv_cache_tokens, limits.memory_share
    decode = StaticDecode(limits.slots or rows, context, rows, below, tokens, share, None, limits.speculation)
    decode.draft_model, decode.invariant = limits.draft_model, limits.batch_invariant
    decode.narrow = limits.kv_cache_dtype == "fp8"
    return [slicing, offloading, decode, WeightOnly(decode)]


def diffusion_passes() -> list[Pass]:
    """Passes of diffusion models: the whole denoising loop at once."""
    from scoring.passes.diffusion import Diffusion

    return [Diffusion()]


def reference_of(task: str) -> Callable[[Any], Callable[..., Any]]:
    """Function that takes a model's plain answers before any pass changes it."""
    if task == "text-to-image":
        from scoring.diffusion import verify as diffusion_verify

        return diffusion_verify.reference
    if task_schema(task).generative:
        from scoring.decoder import verify as decoder_verify

        return decoder_verify.reference
    from scoring.encoder import verify as encoder_verify

    return encoder_verify.reference
