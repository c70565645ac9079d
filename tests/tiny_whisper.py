"""A tiny random Whisper, written as a complete folder: several languages, windows of two seconds, times of 20 ms."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)

from tests import tiny_tokenizers

SEED, SECONDS, TARGETS = 20220921, 2, 64
LANGUAGES = ("en", "de", "fr")


def whisper_tokenizer(seconds: int = SECONDS) -> WhisperTokenizer:
    plain = tiny_tokenizers.gpt2(TARGETS)
    vocabulary = dict(plain.get_vocab())
    merges = [tuple(each) for each in tiny_tokenizers.merges_of_bytes()]
    tokenizer = WhisperTokenizer(vocab=vocabulary, merges=merges, model_max_length=TARGETS)
    tasks = ("<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>")
    names = ["<|startoftranscript|>", *(f"<|{code}|>" for code in LANGUAGES), *tasks]
    tokenizer.add_special_tokens({"additional_special_tokens": names})
    tokenizer.add_tokens([f"<|{at * 0.02:.2f}|>" for at in range(50 * seconds + 1)])
    return tokenizer


def tiny_whisper(folder: Path | str, multilingual: bool = True, seconds: int = SECONDS) -> Path:
    """Write the model with its tokenizer and feature extractor; the same bytes each time.

    `seconds` are those of a window.
    """
    target, tokenizer = Path(folder), whisper_tokenizer(seconds)
    number = tokenizer.convert_tokens_to_ids
    end = int(number("<|endoftext|>"))
    config = WhisperConfig(
        vocab_size=len(tokenizer), num_mel_bins=8, d_model=32, encoder_layers=2, decoder_layers=2,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64,
        max_source_positions=50 * seconds, max_target_positions=TARGETS, init_std=0.7, pad_token_id=end,
        bos_token_id=end, eos_token_id=end, decoder_start_token_id=number("<|startoftranscript|>"),
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = WhisperForConditionalGeneration(config).eval()
    told = {
        "is_multilingual": multilingual,
        "no_timestamps_token_id": number("<|notimestamps|>"),
        "prev_sot_token_id": number("<|startofprev|>"),
        "max_initial_timestamp_index": 25,
        "begin_suppress_tokens": [end],
        "suppress_tokens": [],
        "return_timestamps": False,
        "max_length": TARGETS,
    }
    if multilingual:
        told["lang_to_id"] = {f"<|{code}|>": number(f"<|{code}|>") for code in LANGUAGES}
        told["task_to_id"] = {each: number(f"<|{each}|>") for each in ("transcribe", "translate")}
    names = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")
    model.generation_config = GenerationConfig(**{name: getattr(config, name) for name in names}, **told)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    WhisperFeatureExtractor(feature_size=8, chunk_length=seconds).save_pretrained(target)
    return target
