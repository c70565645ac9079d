"""A decoder that writes yes or no, as a classifier with one logit: what its two logits differ by after a prompt.

The difference of two logits is one product with the difference of their rows of the head, so that the vocabulary's
other rows are neither computed nor kept.
"""

import copy
from typing import Any

import torch
from torch import nn

from scoring.errors import LoadError
from scoring.sentence.ranker import Ranker

_WORDS = ("yes", "no")
_PROBE = 16  # tokens
#: Largest difference from the model's own logits, relative to their size.
_BOUND = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
_ANOTHER = "Serve a reranker whose head gives its logits as they are, or one with a classification head."


def judged_tokens(ranker: Ranker, tokenizer: Any) -> tuple[int, int | None]:
    """Tokens whose logits are compared: the folder's, else the tokenizer's yes and no; raises LoadError."""
    if ranker.true_token is not None:
        known = len(tokenizer)
        for token in (ranker.true_token, ranker.false_token or 0):
            if not 0 <= token < known:
                raise LoadError(f"The folder's LogitScore names token {token}; the tokenizer has {known}.", _ANOTHER)
        return ranker.true_token, ranker.false_token
    vocabulary = tokenizer.get_vocab()
    found = [vocabulary.get(word) for word in _WORDS]
    if found[0] is None or found[1] is None:
        raise LoadError(
            "The tokenizer has no tokens 'yes' and 'no', by which a decoder judges texts.",
            "Name the tokens in the folder, as sentence-transformers' LogitScore does, or serve another reranker.",
        )
    return found[0], found[1]


def judge_of(causal: Any, true: int, false: int | None) -> Any:
    """The classifier of a loaded decoder, which shares its layers; raises LoadError if its logits are none of both."""
    import transformers

    config = copy.deepcopy(causal.config)
    config.num_labels, config.judged_tokens = 1, (true, false)  # by which a pass that reloads it finds them
    try:
        with torch.device("meta"):
            model = transformers.AutoModelForSequenceClassification.from_config(config, dtype=causal.dtype)
    except ValueError as error:
        raise LoadError(
            f"transformers has no classifier with the layers of {type(causal).__name__}.", _ANOTHER
        ) from error
    setattr(model, model.base_model_prefix, causal.base_model)
    head = causal.get_output_embeddings().weight
    row = head[true].float() - (head[false].float() if false is not None else 0.0)
    scores = [module for module in model.modules() if isinstance(module, nn.Linear) and module.weight.is_meta]
    if len(scores) != 1 or scores[0].weight.shape != (1, len(row)) or scores[0].bias is not None:
        raise LoadError(f"{type(causal).__name__} has no plain head by which to judge texts.", _ANOTHER)
    scores[0].weight = nn.Parameter(row[None].to(causal.dtype), requires_grad=False)
    _verify(model, causal, true, false)
    model.name_or_path = causal.name_or_path
    return model.eval()


def _verify(model: Any, causal: Any, true: int, false: int | None) -> None:
    """Raise LoadError unless both give the same number: a head may scale, bend or shift its logits."""
    size = min(_PROBE, int(getattr(causal.config.get_text_config(), "max_position_embeddings", 0) or _PROBE))
    ids = torch.arange(1, size + 1, device=causal.device)[None] % causal.get_input_embeddings().weight.shape[0]
    with torch.inference_mode():
        logits = causal.eval()(input_ids=ids).logits[0, -1].float()
        expected = logits[true] - (logits[false] if false is not None else 0.0)
        found = model.eval()(input_ids=ids).logits[0, 0].float()
    scale = float(logits[[true, *([] if false is None else [false])]].abs().max().clamp_min(1e-6))
    error = float((found - expected).abs()) / scale
    if getattr(causal.config.get_text_config(), "final_logit_softcapping", None) or not error <= _BOUND[causal.dtype]:
        raise LoadError(f"{type(causal).__name__} changes its logits after the head.", _ANOTHER)
