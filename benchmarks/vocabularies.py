"""Tokenizers with vocabularies of any size, for benchmarks of what a host does with tokens."""

import json
import random
from typing import Any

_CONTEXT = 512


def enlarged(tokenizer: Any, count: int) -> Any:
    """A byte-level BPE tokenizer with merges of pairs of its own tokens added, up to so many tokens."""
    from tokenizers import Tokenizer

    told = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary, merges = told["model"]["vocab"], told["model"]["merges"]
    marks = {each["id"] for each in told["added_tokens"]}
    pieces, source = [text for text, number in vocabulary.items() if number not in marks], random.Random(0)
    while len(vocabulary) < count:
        pair = source.choices(pieces, k=2)
        if (text := "".join(pair)) not in vocabulary:
            vocabulary[text] = len(vocabulary)
            merges.append(pair if isinstance(merges[0], list) else " ".join(pair))
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(told))
    return tokenizer


def tokenizer_of(kind: str, count: int) -> Any:
    """A tokenizer with a template for chats: SmolLM2's byte-level BPE, `count` tokens of it or more; or WordPiece."""
    from transformers import AutoTokenizer

    from mii_azure.model.packaged import packaged_model

    smol = AutoTokenizer.from_pretrained(packaged_model("smollm2"))
    if kind == "bpe":
        return enlarged(smol, count)
    from benchmarks.encoder_service import tokenizer

    words = tokenizer(count, 0, _CONTEXT)
    words.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    return words
