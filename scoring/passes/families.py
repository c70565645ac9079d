"""Families that each pass serves, by transformers' model_type, and reasons against others, defined once for all.

Imports nothing, so that plans and documents read it without torch.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

#: Tiers of the static decoder: adapters' own model and kernels, or transformers' modules over its cache.
Tier = Literal["fused", "generic"]
LONGEST_HEAD = 512  # numbers of a head that a GPU's attention kernels hold


class Families(NamedTuple):
    """Families that a pass serves, and similar ones that it refuses, with the reason against each."""

    served: tuple[str, ...]
    refused: Mapping[str, str] = {}


FUSED_ENCODER = Families(
    (
        *("bert", "roberta", "xlm-roberta", "camembert", "electra", "distilbert"),
        *("deberta-v2", "modernbert", "mpnet"),
    ),
    {
        "albert": "its layers share one set of weights and its embeddings are projected",
        "deberta": "its attention adds relative positions by projections of its own (disentangled attention)",
    },
)
#: Families whose products are gated behind norms: a CPU's stack has them, a GPU's kernels have not.
GATED = ("nomic_bert", "gte")
#: Families that the cpu pass runs without padding.
CPU_STACK = (*FUSED_ENCODER.served, *GATED)
#: Families of the fused encoder whose norms stand before their products; eight bits are made for norms behind them.
PRE_NORM = ("modernbert",)
#: Refused: families for which DeepSpeed 0.19.8 has a policy that is wrong on transformers 5, with the fault.
DEEPSPEED_KERNELS = Families(
    ("bert", "roberta", "xlm-roberta", "camembert"),
    {
        "distilbert": "its injected layers give wrong results in every transformers version tried",
        "gpt2": "transformers 5 hands a cache where the injected block expects a mask",
        "gpt_neo": "the injected block keeps its own cache: cached decoding is silently wrong",
        "gptj": "the injected block keeps its own cache, which transformers 5 does not see",
        "gpt_neox": "the policy reads attention fields that transformers 5 no longer has",
        "opt": "the injected layer returns a tuple, and its own cache is invisible to transformers 5",
        "bloom": "DeepSpeed refuses it with transformers newer than 4.43.4",
        "llama": "the injected layer returns a tuple; grouped heads and scaled rotary positions are not supported",
        "clip": "DeepSpeed has a policy for it but no container",
    },
)
#: Families that `scoring.decoder.adapters.builders` builds; a test keeps the two in step.
STATIC_DECODE = Families(
    (
        "bloom",
        "cohere2",
        "gemma",
        "gemma2",
        "gemma3_text",
        "glm4",
        "gpt2",
        "gpt_neo",
        "gpt_neox",
        "gpt_oss",
        "gptj",
        "granite",
        "llama",
        "mistral",
        "mixtral",
        "olmo2",
        "olmo3",
        "opt",
        "phi3",
        "qwen2",
        "qwen3",
        "qwen3_moe",
        "smollm3",
        "starcoder2",
    ),
)
#: Multimodal types that give a text alone to their decoder unchanged, with the family that it mostly is.
WRAPPED: Mapping[str, str] = {
    "cohere2_vision": "cohere2",
    "gemma3": "gemma3_text",
    "got_ocr2": "qwen2",
    "idefics2": "mistral",
    "idefics3": "llama",
    "internvl": "qwen2",
    "lighton_ocr": "qwen3",
    "llava": "llama",
    "llava_next": "llama",
    "llava_onevision": "qwen2",
    "mistral3": "mistral",
    "smolvlm": "llama",
    "vipllava": "llama",
}
_AFTER = "it has norms after its blocks"
#: Families of the static decoder whose layers hold a mixture of experts, or may.
MIXTURES = ("gpt_oss", "mixtral", "qwen3_moe")
_PARALLEL = "its blocks compute attention and MLP side by side"
#: Families of the static decoder whose steps on a CPU run in C (`scoring.decoder.native_step`), and those it refuses.
_NOT_NATIVE = {
    "bloom": "its attention adds a bias of position (ALiBi)",
    "cohere2": _PARALLEL,
    "gemma2": _AFTER,
    "gemma3_text": _AFTER,
    "glm4": _AFTER,
    "gpt_neox": _PARALLEL,
    "gptj": _PARALLEL,
    **dict.fromkeys(MIXTURES, "its layers are mixtures of experts"),
    "olmo2": _AFTER,
    "olmo3": _AFTER,
}
NATIVE_STEP = Families(tuple(each for each in STATIC_DECODE.served if each not in _NOT_NATIVE), _NOT_NATIVE)
WORTH_ON_CPU = 2e8  # bytes of float32 weights below which caches hold them in part, and Python bounds such a step
#: Served: families whose sliced forward and cached decode were verified against transformers 5.
TENSOR_SLICING = Families(
    (
        "llama",
        "mistral",
        "mixtral",
        "qwen2",
        "qwen2_moe",
        "qwen3",
        "qwen3_moe",
        "gemma2",
        "opt",
        "gpt_neo",
        "gptj",
        "gpt_neox",
        "olmo",
        "olmo2",
        "olmo3",
        "bert",
        "roberta",
        "distilbert",
    ),
    {
        "gpt2": "DeepSpeed lists it as unsupported: its query, key and value are one Conv1D",
        "bloom": "its sliced generation fails: alibi is built for all heads",
        "phi3": "its gate and up projections are one matrix, which is cut in the wrong place",
        "falcon": "its one key-value head cannot be cut",
    },
)
#: Families whose key-value heads are repeated where slices are more: keys and values are products of their own.
REPEATED_HEADS = (
    "gemma2",
    "llama",
    "mistral",
    "mixtral",
    "olmo",
    "olmo2",
    "olmo3",
    "qwen2",
    "qwen2_moe",
    "qwen3",
    "qwen3_moe",
)
#: Types whose layers keep a recurrent state beside or in place of keys and values, in transformers' own cache.
RECURRENT = (
    *("bailing_hybrid", "bamba", "falcon_h1", "falcon_mamba", "granitemoehybrid", "jamba", "kimi_linear", "lfm2"),
    *("lfm2_moe", "lfm3", "mamba", "mamba2", "nemotron_h", "olmo_hybrid", "qwen3_5", "qwen3_5_moe"),
    *("qwen3_5_moe_text", "qwen3_5_text", "qwen3_next", "zamba", "zamba2", "zaya"),
)
#: Of these, types whose modules begin their states anew with each piece of a prompt.
WHOLE_PROMPTS = ("falcon_mamba", "jamba", "mamba", "zamba")
#: Why nothing is drafted for them.
NO_DRAFTS = "its recurrent states cannot be wound back to the first wrong token of a draft"
_STATE = "its layers keep a recurrent state in a form of their own"
_BIAS = "its attention adds biases to the scores"
_INDEX = "its layers choose keys by an index that they keep beside them"
_OWN_ATTENTION = "its attention does not go through transformers' attention interface"
_NO_POSITIONS = "its forward takes no positions"
_PADDED = "its positions begin after the padding token's"
_TWICE = "a module attends more than once"
#: Refused on paper by the generic tier, which takes any other family and decides by the loaded model's attention.
GENERIC_DECODE = Families(
    (),
    {
        **dict.fromkeys(
            ("minimax", "recurrent_gemma", "rwkv", "xlstm"),
            _STATE,
        ),
        **dict.fromkeys(("inkling2_text", "inkling_text"), _BIAS),
        **dict.fromkeys(
            ("axk2", "deepseek_v32", "deepseek_v4", "dots3_note", "dots3_note_text", "glm_moe_dsa", "hy_v4",
             "minimax_m3_vl_text", "qwen4_exp", "qwen4_exp_text"),
            _INDEX,
        ),
        **dict.fromkeys(
            ("big_bird", "codegen", "falcon", "git", "gpt_neox_japanese", "megatron-bert", "openai-gpt", "reformer",
             "rembert", "xglm", "xlm"),
            _OWN_ATTENTION,
        ),
        **dict.fromkeys(
            ("bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "cpmant", "marian", "mbart", "mpt", "mvp",
             "pegasus", "plbart", "prophetnet", "roformer", "trocr", "whisper", "xlnet"),
            _NO_POSITIONS,
        ),
        **dict.fromkeys(
            ("camembert", "data2vec-text", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod"),
            _PADDED,
        ),
        **dict.fromkeys(("diffllama", "hrm_text"), _TWICE),
        "doge": "it makes its masks itself",
        "paligemma": "its attention is in both directions",
    },
)  # fmt: skip
#: Families whose slices the static decoder serves, in either tier.
SLICED_DECODERS = tuple(family for family in TENSOR_SLICING.served if family not in FUSED_ENCODER.served)
#: Encoders whose learned positions begin after the padding token's.
POSITIONS_AFTER_PADDING = ("roberta", "xlm-roberta", "camembert", "mpnet")


def uncut(family: str, degree: int, heads: int, kv_heads: int) -> str:
    """Heads of a family that cannot be divided over so many slices, with their number; empty if all can."""
    if heads % degree:
        return f"{heads} attention heads"
    repeated = family in REPEATED_HEADS and degree % kv_heads == 0
    return f"{kv_heads} key-value heads" if kv_heads % degree and not repeated else ""


class TierChoice(NamedTuple):
    """Tier of the static decoder that a family is for, None if neither, and the reason."""

    tier: Tier | None
    reason: str


_GENERIC = "generic tier: transformers' own modules over our cache"


def text_family(family: str) -> str:
    """Family of the decoder that answers a text: of a multimodal type, its text part's."""
    return WRAPPED.get(family, family)


def decoder_tier(family: str) -> TierChoice:
    """Choose the tier of a decoder family; the generic one is a forecast: the loaded model's attention decides."""
    if (text := text_family(family)) in STATIC_DECODE.served:
        return TierChoice("fused", "fused tier" if text == family else f"fused tier, as the {text} in it")
    if family in GENERIC_DECODE.refused:
        return TierChoice(None, f"{family}: {GENERIC_DECODE.refused[family]}")
    if family in RECURRENT:
        told = "and recurrent states of each slot, which are of whole sequences: no prefix is reused"
        return TierChoice("generic", f"{_GENERIC} {told}")
    return TierChoice("generic", _GENERIC)
