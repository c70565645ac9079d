"""Tiny random models of every architecture that is served, written as complete Hugging Face folders.

`tiny_model("gpt2", "text-generation", folder)` writes the same bytes each time. Contexts are short: 128 positions,
so that a prompt past the context is cheap. Weights are spread wide, so that answers depend on the input. And what
trips serving code in real life is kept: GPT-2 and Llama have no padding token, OPT starts a text with </s>,
BLOOM and Gemma pad on the left, Mistral sees a window, Marian and BART search with beams.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from tests import tiny_pipelines, tiny_tokenizers, tiny_whisper

CONTEXT = 128
SEED = 20240607
LABELS = ("negative", "neutral", "positive")
ENTITIES = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")

ENTAILMENTS = ("contradiction", "neutral", "entailment")
_LABELS: dict[str, tuple[str, ...]] = {
    "text-classification": LABELS,
    "token-classification": ENTITIES,
    "text-ranking": ("LABEL_0",),
    "zero-shot-classification": ENTAILMENTS,
}

ENCODER_TASKS = (
    "question-answering",
    "text-classification",
    "token-classification",
    "fill-mask",
    "feature-extraction",
    "sentence-embeddings",
    "text-ranking",
    "sentence-similarity",
    "zero-shot-classification",
)
DECODER_TASKS = ("text-generation", "conversational")

_AUTO_CLASS = {
    "question-answering": "AutoModelForQuestionAnswering",
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "fill-mask": "AutoModelForMaskedLM",
    "feature-extraction": "AutoModel",
    "sentence-embeddings": "AutoModel",
    "text-ranking": "AutoModelForSequenceClassification",
    "sentence-similarity": "AutoModel",
    "zero-shot-classification": "AutoModelForSequenceClassification",
    "text-generation": "AutoModelForCausalLM",
    "conversational": "AutoModelForCausalLM",
    "summarization": "AutoModelForSeq2SeqLM",
    "translation": "AutoModelForSeq2SeqLM",
    "automatic-speech-recognition": "AutoModelForSpeechSeq2Seq",
}

# Chat templates in each family's own form; the others use DialoGPT's: every turn ends with the end token.
_TURNS_BY_EOS = "{% for message in messages %}{{ message.content + eos_token }}{% endfor %}"
_CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_INST = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'assistant' %}"
    "{{ ' ' + message.content + eos_token }}{% else %}{{ '[INST] ' + message.content + ' [/INST]' }}"
    "{% endif %}{% endfor %}"
)
_GEMMA_TURNS = (
    "{{ bos_token }}{% for message in messages %}"
    "{% set role = 'model' if message.role == 'assistant' else message.role %}"
    "{{ '<start_of_turn>' + role + '\\n' + message.content | trim + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Family:
    """One architecture: what it is, what it can do, and the numbers that make it tiny."""

    kind: str  # encoder, decoder or encoder-decoder
    tasks: tuple[str, ...]
    tokenizer: tiny_tokenizers.Make
    config: dict[str, Any]
    chat_template: str = _TURNS_BY_EOS
    generation: dict[str, Any] = field(default_factory=dict)


def _encoder(tokenizer: tiny_tokenizers.Make, **changes: Any) -> Family:
    config: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": CONTEXT,
        "initializer_range": 0.5,
    }
    return Family("encoder", ENCODER_TASKS, tokenizer, config | changes)


def _decoder(tokenizer: tiny_tokenizers.Make, chat_template: str = _TURNS_BY_EOS, **config: Any) -> Family:
    return Family("decoder", DECODER_TASKS, tokenizer, {"initializer_range": 0.5} | config, chat_template)


def _llama_like(tokenizer: tiny_tokenizers.Make, chat_template: str, **changes: Any) -> Family:
    config: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT,
    }
    return _decoder(tokenizer, chat_template, **(config | changes))


def _bart_like(
    tokenizer: tiny_tokenizers.Make, tasks: tuple[str, ...], generation: dict[str, Any], **config: Any
) -> Family:
    sizes: dict[str, Any] = {
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "max_position_embeddings": CONTEXT,
        "init_std": 0.7,
    }
    return Family("encoder-decoder", tasks, tokenizer, sizes | config, generation=generation)


_ROBERTA_POSITIONS = CONTEXT + 2  # RoBERTa counts positions from the padding id + 1
_GPT2_SIZES: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT}
_BART_GENERATION: dict[str, Any] = {
    "num_beams": 2,
    "no_repeat_ngram_size": 3,
    "early_stopping": True,
    "max_length": 32,
    "forced_bos_token_id": 0,
    "forced_eos_token_id": 2,
}
_MARIAN_GENERATION: dict[str, Any] = {"num_beams": 4, "max_length": 32, "forced_eos_token_id": 0}

FAMILIES: dict[str, Family] = {
    "bert": _encoder(tiny_tokenizers.bert),
    "roberta": _encoder(tiny_tokenizers.roberta, max_position_embeddings=_ROBERTA_POSITIONS, type_vocab_size=1),
    "xlm-roberta": _encoder(tiny_tokenizers.xlm_roberta, max_position_embeddings=_ROBERTA_POSITIONS, type_vocab_size=1),
    "distilbert": _encoder(tiny_tokenizers.bert_cased, dim=32, n_layers=2, n_heads=4, hidden_dim=64),
    "albert": _encoder(tiny_tokenizers.albert, embedding_size=16),
    "electra": _encoder(tiny_tokenizers.bert, embedding_size=16),
    "deberta-v2": _encoder(
        tiny_tokenizers.deberta_v2,
        relative_attention=True,
        position_buckets=16,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type=["p2c", "c2p"],
        position_biased_input=False,
        type_vocab_size=0,
    ),
    "mpnet": _encoder(tiny_tokenizers.mpnet, max_position_embeddings=_ROBERTA_POSITIONS),
    "gpt2": _decoder(tiny_tokenizers.gpt2, **_GPT2_SIZES),
    "gpt_neo": _decoder(
        tiny_tokenizers.gpt2,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        window_size=16,
        max_position_embeddings=CONTEXT,
    ),
    "gptj": _decoder(tiny_tokenizers.gpt2, rotary_dim=4, tie_word_embeddings=False, **_GPT2_SIZES),
    "gpt_neox": _decoder(
        tiny_tokenizers.gpt_neox,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=CONTEXT,
    ),
    "opt": _decoder(
        tiny_tokenizers.opt,
        hidden_size=32,
        word_embed_proj_dim=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        ffn_dim=64,
        max_position_embeddings=CONTEXT,
    ),
    "bloom": _decoder(tiny_tokenizers.bloom, hidden_size=32, n_layer=2, n_head=4, seq_length=CONTEXT),
    "llama": _llama_like(tiny_tokenizers.llama, _INST),
    "mistral": _llama_like(tiny_tokenizers.llama, _INST, sliding_window=32),
    "mixtral": _llama_like(tiny_tokenizers.llama, _INST, num_local_experts=4, sliding_window=32),
    "gpt_oss": _llama_like(
        tiny_tokenizers.qwen2,
        _CHATML,
        head_dim=16,
        intermediate_size=24,
        num_local_experts=5,
        num_experts_per_tok=3,
        sliding_window=32,
        swiglu_limit=1.5,
        initializer_range=0.3,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 150000.0,
            "factor": 8.0,
            "original_max_position_embeddings": 16,
            "truncate": False,
        },
    ),
    "qwen3_moe": _llama_like(
        tiny_tokenizers.qwen2,
        _CHATML,
        head_dim=16,
        num_experts=8,
        num_experts_per_tok=3,
        moe_intermediate_size=24,
        mlp_only_layers=[0],
    ),
    "qwen2": _llama_like(tiny_tokenizers.qwen2, _CHATML, tie_word_embeddings=True),
    "gemma": _llama_like(tiny_tokenizers.gemma, _GEMMA_TURNS, num_key_value_heads=1, head_dim=8),
    "qwen3": _llama_like(tiny_tokenizers.qwen2, _CHATML, head_dim=16),
    "phi3": _llama_like(tiny_tokenizers.llama, _INST, sliding_window=32, partial_rotary_factor=0.5),
    "smollm3": _llama_like(tiny_tokenizers.qwen2, _CHATML, no_rope_layers=[1, 0]),
    "granite": _llama_like(
        tiny_tokenizers.qwen2,
        _CHATML,
        embedding_multiplier=3.0,
        residual_multiplier=0.5,
        attention_multiplier=0.25,
        logits_scaling=2.0,
    ),
    "starcoder2": _llama_like(tiny_tokenizers.qwen2, _CHATML, sliding_window=32, use_bias=True),
    "gemma2": _llama_like(
        tiny_tokenizers.gemma,
        _GEMMA_TURNS,
        head_dim=8,
        sliding_window=32,
        query_pre_attn_scalar=16,
        attn_logit_softcapping=3.0,
        tie_word_embeddings=False,
        final_logit_softcapping=30.0,
    ),
    "gemma3_text": _llama_like(
        tiny_tokenizers.gemma,
        _GEMMA_TURNS,
        head_dim=16,
        sliding_window=32,
        query_pre_attn_scalar=16,
        layer_types=["sliding_attention", "full_attention"],
        tie_word_embeddings=False,
    ),
    "cohere2": _llama_like(
        tiny_tokenizers.qwen2,
        _CHATML,
        sliding_window=32,
        layer_types=["sliding_attention", "full_attention"],
        logit_scale=0.5,
    ),
    "glm4": _llama_like(tiny_tokenizers.qwen2, _CHATML, head_dim=16, partial_rotary_factor=0.5),
    "olmo2": _llama_like(tiny_tokenizers.gpt_neox, _CHATML, attention_bias=True),
    "olmo3": _llama_like(
        tiny_tokenizers.gpt_neox,
        _CHATML,
        sliding_window=32,
        layer_types=["sliding_attention", "full_attention"],
        rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    ),
    "t5": Family(
        "encoder-decoder",
        ("summarization", "translation"),
        tiny_tokenizers.t5,
        {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "initializer_factor": 12.0},
    ),
    "bart": _bart_like(tiny_tokenizers.roberta, ("summarization", "translation"), _BART_GENERATION),
    "marian": _bart_like(tiny_tokenizers.marian, ("translation",), _MARIAN_GENERATION, scale_embedding=True),
}


def tasks_of(kind: str) -> list[tuple[str, str]]:
    """Every (family, task) of a kind, for parametrised tests."""
    return [(name, task) for name, family in FAMILIES.items() if family.kind == kind for task in family.tasks]


def auto_class(task: str) -> Any:
    """The transformers Auto class that loads a model for the task."""
    return getattr(transformers, _AUTO_CLASS[task])


def tiny_model(family: str, task: str, folder: Path | str) -> Path:
    """Write a tiny random model of the family with the task's head, and its tokenizer, into the folder.

    Raises KeyError for a family or a task that the family cannot do.
    """
    if (family, task) == ("stable-diffusion", "text-to-image"):
        return tiny_pipelines.tiny_pipeline(folder)
    if (family, task) == ("whisper", "automatic-speech-recognition"):
        return tiny_whisper.tiny_whisper(folder)
    recipe = FAMILIES[family]
    if task not in recipe.tasks:
        raise KeyError(f"{family} does {', '.join(recipe.tasks)}, not {task}")
    target = Path(folder)
    tokenizer = recipe.tokenizer(CONTEXT)
    if task == "conversational":
        tokenizer.chat_template = recipe.chat_template
    config = _config(family, task, tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = auto_class(task).from_config(config).eval()
    if recipe.kind != "encoder":
        model.generation_config = _generation_config(recipe, model, tokenizer)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    return target


def load_tiny(folder: Path, task: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The reference: the folder as plain transformers loads it, in evaluation mode, in float32."""
    model = auto_class(task).from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def _config(family: str, task: str, tokenizer: PreTrainedTokenizerBase) -> Any:
    names = ("pad_token_id", "bos_token_id", "eos_token_id")
    changes: dict[str, Any] = {name: getattr(tokenizer, name) for name in names}
    changes |= {"vocab_size": len(tokenizer)} | FAMILIES[family].config
    labels = _LABELS.get(task)
    if labels:
        changes["id2label"] = dict(enumerate(labels))
        changes["label2id"] = {label: index for index, label in enumerate(labels)}
    if family in ("t5", "marian"):
        changes["decoder_start_token_id"] = tokenizer.pad_token_id
    if family == "bart":
        changes["decoder_start_token_id"] = tokenizer.eos_token_id
    return AutoConfig.for_model(family, **changes)


def _generation_config(recipe: Family, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    generation = GenerationConfig.from_model_config(model.config)
    generation.update(**recipe.generation)
    if isinstance(tokenizer, transformers.MarianTokenizer):
        generation.bad_words_ids = [[tokenizer.pad_token_id]]
    return generation
