"""DeepSpeed's own transformer kernels, injected into transformers 5 models that they compute correctly."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from scoring.passes.base import Applied, Decision, Facts, Hardware, Pass, PassRefused
from scoring.passes.checking import verify_encoder
from scoring.passes.cuda_graph import longest_input

ROWS = 16  # of one batch; DeepSpeed's workspace is sized for them

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
        """Raises PassRefused without fp16 weights, or where DeepSpeed fails or replaces nothing."""
        if model.dtype != torch.float16:
            raise PassRefused(f"the kernels run in fp16; the model is loaded in {str(model.dtype)[6:]}")
        base = getattr(model, model.base_model_prefix, model)
        # DeepSpeed transposes the weights inside the plain layers' own storage: keep copies, on the host.
        before = [deepcopy(layer).cpu() for layer in base.encoder.layer]
        attention, device = model.config._attn_implementation, model.device

        def undo() -> None:
            for index, layer in enumerate(before):
                base.encoder.layer[index] = layer.to(device)
            model.config._attn_implementation = attention
            vars(base).pop("forward", None)

        try:
            count = _inject(model)
        except Exception as error:
            undo()
            raise PassRefused(f"DeepSpeed failed: {str(error).strip().splitlines()[0][:200]}") from error
        if count != len(before):
            undo()
            raise PassRefused(f"DeepSpeed replaced {count} of {len(before)} layers")
        model.config._attn_implementation = "eager"
        base.forward = _adapted(base, base.forward)
        _allocate_workspace(base)
        return Applied(count, f"{count} layers", undo)

    def verify(self, model: Any, reference: Callable[..., Any]) -> float:
        return verify_encoder(model, reference)


def _inject(model: Any) -> int:
    """Replace the layers, have each return a bare tensor as transformers 5 expects, and count them."""
    import deepspeed
    from deepspeed.model_implementations.transformers.ds_transformer import DeepSpeedTransformerInference

    _cover_roberta_likes()
    deepspeed.init_inference(
        model, dtype=torch.float16, replace_with_kernel_inject=True, max_out_tokens=longest_input(model.config)
    )
    injected = [module for module in model.modules() if isinstance(module, DeepSpeedTransformerInference)]
    for module in injected:
        module.config.return_tuple = False
        module.config.return_single_tuple = False
    return len(injected)


def _cover_roberta_likes() -> None:
    """XLM-R and CamemBERT layers are RoBERTa's under their own class names: have the policy match those too."""
    from deepspeed.module_inject.containers.bert import HFBertLayerPolicy
    from transformers.models.camembert.modeling_camembert import CamembertLayer
    from transformers.models.xlm_roberta.modeling_xlm_roberta import XLMRobertaLayer

    HFBertLayerPolicy(None)  # fills the list of classes in
    known = HFBertLayerPolicy._orig_layer_class or []
    known.extend(cls for cls in (XLMRobertaLayer, CamembertLayer) if cls not in known)


def _allocate_workspace(base: Any) -> None:
    """Run the largest batch first: the workspace takes the size of the first batch, and larger ones overrun it."""
    ids = torch.full((ROWS, 16), 5, device=base.device)
    with torch.inference_mode():
        base(input_ids=ids, attention_mask=torch.ones_like(ids))


def _adapted(base: Any, plain: Callable[..., Any]) -> Callable[..., Any]:
    """At most ROWS rows at a time, with the mask that the layers add to the scores, [B, 1, 1, S].

    A boolean mask, which transformers would build, gives plausible wrong answers.
    """

    def part(ids: Tensor, mask: Tensor, rest: dict[str, Any]) -> Any:
        additive = (1 - mask)[:, None, None, :].to(base.dtype) * torch.finfo(base.dtype).min
        return plain(input_ids=ids, attention_mask=additive, **rest)

    def forward(input_ids: Tensor, attention_mask: Tensor | None = None, **rest: Any) -> Any:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if len(input_ids) <= ROWS:
            return part(input_ids, mask, rest)
        parts = []
        for at in range(0, len(input_ids), ROWS):
            rows = slice(at, at + ROWS)
            mine = {name: value[rows] if isinstance(value, Tensor) else value for name, value in rest.items()}
            parts.append(part(input_ids[rows], mask[rows], mine))
        return type(parts[0])(**{name: torch.cat([each[name] for each in parts]) for name in parts[0]})

    return forward
