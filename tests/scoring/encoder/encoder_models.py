"""Small random encoders of every covered family, wide enough in weights for answers to depend on the input."""

from typing import Any

import torch
import transformers

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "max_position_embeddings": 66,
    "vocab_size": 99,
    "initializer_range": 0.3,
}
DISTIL: dict[str, Any] = {
    "dim": 64,
    "n_layers": 2,
    "n_heads": 2,
    "hidden_dim": 128,
    "max_position_embeddings": 66,
    "vocab_size": 99,
    "initializer_range": 0.3,
}
#: Distances beyond four are bucketed, and those beyond twelve are one.
DEBERTA = SIZES | {
    "relative_attention": True,
    "position_buckets": 8,
    "max_relative_positions": 12,
    "pos_att_type": ["p2c", "c2p"],
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
    "position_biased_input": False,
    "type_vocab_size": 0,
}
#: Tokens see five others on each side, but for the first layer.
MODERN = SIZES | {
    "local_attention": 10,
    "global_attn_every_n_layers": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "cls_token_id": 1,
    "sep_token_id": 2,
}
COVERED: dict[str, tuple[str, dict[str, Any]]] = {
    "bert fill-mask": ("BertForMaskedLM", SIZES),
    "bert classification": ("BertForSequenceClassification", SIZES),
    "bert embeddings": ("BertModel", SIZES),
    "roberta tokens": ("RobertaForTokenClassification", SIZES | {"pad_token_id": 1}),
    "xlm-roberta embeddings": ("XLMRobertaModel", SIZES | {"pad_token_id": 1}),
    "camembert answers": ("CamembertForQuestionAnswering", SIZES | {"pad_token_id": 1}),
    "electra tokens": ("ElectraForTokenClassification", SIZES | {"embedding_size": 64}),
    "distilbert answers": ("DistilBertForQuestionAnswering", DISTIL),
    "deberta-v2 tokens": ("DebertaV2ForTokenClassification", DEBERTA),
    "deberta-v2 unshared": (
        "DebertaV2Model",
        DEBERTA | {"share_att_key": False, "position_buckets": -1, "type_vocab_size": 2, "position_biased_input": True},
    ),
    "modernbert fill-mask": ("ModernBertForMaskedLM", MODERN),
    "modernbert embeddings": ("ModernBertModel", MODERN | {"intermediate_size": 320, "mlp_bias": True}),
    "mpnet embeddings": ("MPNetModel", SIZES | {"pad_token_id": 1}),
}

#: Those that only a CPU's stack covers.
GATED: dict[str, tuple[str, dict[str, Any]]] = {
    "nomic embeddings": ("NomicBertModel", SIZES | {"hidden_act": "silu", "type_vocab_size": 2}),
    "gte classification": ("GteForSequenceClassification", SIZES | {"type_vocab_size": 0}),
}

#: Those whose norms stand behind their products, which eight bits are made for.
POST_NORM = [name for name in COVERED if "modernbert" not in name]


def make(architecture: str, config: dict[str, Any], seed: int = 0) -> Any:
    """A model in evaluation mode, fp32 on the CPU."""
    torch.manual_seed(seed)
    cls = getattr(transformers, architecture)
    return cls(cls.config_class(**config)).eval()


def covered(name: str) -> Any:
    """One of COVERED."""
    return make(*COVERED[name])
