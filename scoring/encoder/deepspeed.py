"""Injection of DeepSpeed's kernels into a transformers 5 encoder, with the inputs that they expect."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from scoring.encoder.buckets import longest_input
from scoring.passes.base import PassRefused

ROWS = 16  # rows of a batch; DeepSpeed's workspace is sized for them


def inject(model: Any) -> tuple[int, Callable[[], None]]:
    """Replace a model's layers; return their number and an undo.

    Raises PassRefused, with the model unchanged, without fp16 weights, or if DeepSpeed fails or replaces too few.
    """
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
    return count, undo


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
    """Have the RoBERTa policy match XLM-R and CamemBERT layers too, which are the same under other class names."""
    from deepspeed.module_inject.containers.bert import HFBertLayerPolicy
    from transformers.models.camembert.modeling_camembert import CamembertLayer
    from transformers.models.xlm_roberta.modeling_xlm_roberta import XLMRobertaLayer

    HFBertLayerPolicy(None)  # fills in the list of classes
    known = HFBertLayerPolicy._orig_layer_class or []
    known.extend(cls for cls in (XLMRobertaLayer, CamembertLayer) if cls not in known)


def _allocate_workspace(base: Any) -> None:
    """Run the largest batch first: the workspace takes the size of the first batch, and larger ones overrun it."""
    ids = torch.full((ROWS, 16), 5, device=base.device)
    with torch.inference_mode():
        base(input_ids=ids, attention_mask=torch.ones_like(ids))


def _adapted(base: Any, plain: Callable[..., Any]) -> Callable[..., Any]:
    """Run at most ROWS rows at a time, with the additive mask that the layers expect, [B, 1, 1, S].

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
