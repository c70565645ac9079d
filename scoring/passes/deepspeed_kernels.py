"""DeepSpeed's own transformer kernels, injected into transformers 5 models that they compute correctly."""

from collections.abc import Callable
from typing import Any

from scoring.passes.base import Applied, Decision, Facts, Hardware, Pass

FAMILIES = ("bert", "roberta", "xlm-roberta", "camembert")
#: Families that DeepSpeed 0.19.8 has a policy for and that stay wrong on transformers 5, with what goes wrong.
REFUSED = {
    "distilbert": "its injected layers give wrong results in every transformers version tried",
    "gpt2": "transformers 5 hands a cache where the injected block expects a mask",
    "gpt_neo": "the injected block keeps its own cache: cached decoding is silently wrong",
    "gptj": "the injected block keeps its own cache, which transformers 5 does not see",
    "gpt_neox": "the policy reads attention fields that transformers 5 no longer has",
    "opt": "the injected layer returns a tuple, and its own cache is invisible to transformers 5",
    "bloom": "DeepSpeed refuses it with transformers newer than 4.43.4",
    "llama": "the injected layer returns a tuple; grouped heads and scaled rotary positions are not supported",
    "clip": "DeepSpeed has a policy for it but no container",
}


class DeepSpeedKernels(Pass):
    """`deepspeed.init_inference(replace_with_kernel_inject=True)`, adapted: tensors returned, additive 4-D masks."""

    name = "deepspeed_kernels"
    public = True
    supersedes = ("compile",)

    def applies(self, facts: Facts, hardware: Hardware, objective: str) -> Decision:
        if facts.family in REFUSED:
            return Decision(False, f"{facts.family} stays wrong: {REFUSED[facts.family]}")
        if facts.family not in FAMILIES:
            return Decision(False, f"DeepSpeed has no kernels for {facts.family}")
        if hardware.device != "cuda":
            return Decision(False, "DeepSpeed's kernels need an NVIDIA GPU")
        if hardware.capability < (7, 0):
            return Decision(False, f"DeepSpeed's kernels need compute capability 7.0; {hardware.name} is older")
        if not hardware.nvcc:
            return Decision(False, "DeepSpeed builds its kernels with nvcc, which is not installed")
        return Decision(True, "fused fp16 kernels for each layer")

    def apply(self, model: Any) -> Applied:
        from scoring.injection import inject

        count, undo = inject(model)
        return Applied(count, f"{count} layers", undo)

    def verify(self, model: Any, reference: Callable[..., Any]) -> float:
        from scoring.passes.checking import verify_encoder

        return verify_encoder(model, reference)
