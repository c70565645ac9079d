"""The passes there are, in the order in which they are applied."""

from collections.abc import Callable
from typing import Any

from scoring.config import Deployment, Limits
from scoring.passes.base import Pass
from scoring.tasks import task_schema


def catalogue(deployment: Deployment) -> list[Pass]:
    """The passes that a deployment's task may have."""
    if deployment.task == "text-to-image":
        return diffusion_passes()
    if task_schema(deployment.task).generative:
        return decoder_passes(deployment.limits)
    return encoder_passes()


def encoder_passes() -> list[Pass]:
    """Layers first, then the whole forward as one graph."""
    from scoring.passes.compile import Compile
    from scoring.passes.cuda_graph import CudaGraph
    from scoring.passes.deepspeed_kernels import DeepSpeedKernels
    from scoring.passes.fused_encoder import FusedEncoder

    return [DeepSpeedKernels(), FusedEncoder(), Compile(), CudaGraph()]


def decoder_passes(limits: Limits) -> list[Pass]:
    """As many slots of full length as the batch's budget of tokens holds; on a CPU one for every row of a batch."""
    from scoring.passes.static_decode import StaticDecode
    from scoring.passes.weight_only import WeightOnly

    context = limits.context_length or StaticDecode().max_length
    slots = max(1, min(limits.max_batch_size, limits.max_batch_tokens // context))
    decode = StaticDecode(slots, context, cpu_slots=limits.max_batch_size)
    return [decode, WeightOnly(decode)]


def diffusion_passes() -> list[Pass]:
    """The whole loop of steps at once."""
    from scoring.passes.diffusion import Diffusion

    return [Diffusion()]


def reference_of(task: str) -> Callable[[Any], Callable[..., Any]]:
    """How a model's plain answers are taken before any pass changes it."""
    if task == "text-to-image":
        from scoring import diffusion_checking

        return diffusion_checking.reference
    if task_schema(task).generative:
        from scoring import decoder_checking

        return decoder_checking.reference
    from scoring.passes import checking

    return checking.reference
