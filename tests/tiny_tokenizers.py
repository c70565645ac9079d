"""Small tokenizers of every family's own kind, trained on the spot from the sentences below.

Each has 280 to 570 entries, its family's own special tokens at its family's own ids, and its own class, so that
`AutoTokenizer.from_pretrained` gives what the real checkpoint would give. Byte-level and byte-fallback ones
spell any text; the others turn what the sentences never show (Chinese, emoji) into their unknown token.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from string import printable
from tempfile import TemporaryDirectory
from typing import Any

import sentencepiece
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    AlbertTokenizer,
    BertTokenizer,
    DebertaV2Tokenizer,
    GemmaTokenizer,
    GPT2Tokenizer,
    GPTNeoXTokenizer,
    LlamaTokenizer,
    MarianTokenizer,
    MPNetTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
    RobertaTokenizer,
    T5Tokenizer,
    XLMRobertaTokenizer,
)

SENTENCES = (
    "The river Aare runs through Bern, and the market opens at 8:30 every Saturday.",
    "Anna Müller lives in Zürich with her brother Paul and an old grey cat.",
    "What is the capital of France? Paris is the capital of France.",
    "He bought 12 apples, 3 pears and a loaf of bread for $9.75 (tax included).",
    "The film was wonderful; the music, however, was terrible!",
    "I am not sure whether this product is good or bad.",
    "Das Haus ist schön, aber die Straße ist laut und die Tür bleibt zu.",
    "Le café près de la gare ferme à minuit, où l'été est déjà fini.",
    "El niño comió piña mañana y ayer: ¿quién pagó la cuenta?",
    "The house is wonderful, the garden is small, and the house is old.",
    "Maria works for the bank in London; John works at a school in Madrid.",
    "A short summary of the long report was sent to the whole team on Monday.",
    "Please translate this sentence from English to German, and then to French.",
    "Once upon a time there was a king who wanted to know everything.",
    "The train from Geneva to Milan leaves at 17:05 and arrives at 20:40.",
    "She said: 'never before have I seen so many stars in one night'.",
    "Water boils at 100 degrees; ice melts at 0 degrees; steam is hotter still.",
    "If x > y and y > z, then x > z: that is what they call an order.",
    "user@example.com wrote to <help@example.org> about https://example.org/a_b?c=d&e=f#g",
    "Çok güzel, åtte fjorder, æble og øl, coração, naïve, crème brûlée, Œuvre.",
    "QUICK JACKDAWS LOVE MY BIG SPHINX OF QUARTZ VERY MUCH WHEN EXAMINED FROM UP HIGH.",
    " ".join(printable.strip()),
    " ".join("ÀÁÂÄÆÇÈÉÊËÎÏÑÓÔÖØÙÚÛÜßàáâäåæçèéêëíîïñóôöøùúûü¿¡«»–—’“”€°"),
)
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]

Make = Callable[[int], PreTrainedTokenizerBase]


def _text(cased: bool = True) -> Iterator[str]:
    return iter(SENTENCES if cased else [sentence.lower() for sentence in SENTENCES])


@lru_cache(maxsize=4)
def _wordpieces(cased: bool, accents: bool) -> tuple[str, ...]:
    """Word pieces, no special token among them: each as a word's beginning and as its ##continuation.

    Trained as byte pairs: the WordPiece trainer numbers its ## alphabet in an order that changes.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=not cased, strip_accents=not accents)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(_text(), trainers.BpeTrainer(vocab_size=200, show_progress=False))
    pieces = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    return (*pieces, *(f"##{piece}" for piece in pieces))


@lru_cache(maxsize=2)
def _merges(byte_level: bool) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """Vocabulary, alphabet first, and merges of byte pairs: of bytes, or of characters with ▁ for a space."""
    tokenizer = Tokenizer(models.BPE())
    if byte_level:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet, size = pre_tokenizers.ByteLevel.alphabet(), 400
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        alphabet, size = [], 300
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(_text(), trainer)
    state = json.loads(tokenizer.to_str())["model"]
    vocabulary: dict[str, int] = state["vocab"]
    pairs = tuple((left, right) for left, right in state["merges"])
    return tuple(sorted(vocabulary, key=vocabulary.__getitem__)), pairs


@lru_cache(maxsize=2)
def _sentencepiece_model(cased: bool = True) -> bytes:
    """A SentencePiece unigram model of the sentences, with one thread and so the same every time."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=_text(cased),
        model_writer=written,
        vocab_size=300,
        character_coverage=1.0,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
    )
    return written.getvalue()


@lru_cache(maxsize=2)
def _pieces(cased: bool = True) -> tuple[tuple[str, float], ...]:
    """Unigram pieces with their log probabilities, without SentencePiece's three control pieces."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=_sentencepiece_model(cased))
    scored = ((processor.IdToPiece(i), processor.GetScore(i)) for i in range(processor.GetPieceSize()))
    return tuple((piece, score) for piece, score in scored if piece not in ("<unk>", "<s>", "</s>"))


def _numbered(*tokens: str) -> dict[str, int]:
    return {token: index for index, token in enumerate(dict.fromkeys(tokens))}


def bert(length: int, cased: bool = False) -> PreTrainedTokenizerBase:
    """BERT's WordPiece: lower-cased and stripped of accents, or cased."""
    vocabulary = _numbered("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *_wordpieces(cased, accents=cased))
    return BertTokenizer(vocab=vocabulary, do_lower_case=not cased, model_max_length=length)


def mpnet(length: int) -> PreTrainedTokenizerBase:
    """MPNet's WordPiece: BERT's pieces, RoBERTa's special tokens at RoBERTa's ids."""
    pieces = _wordpieces(False, accents=False)
    vocabulary = _numbered("<s>", "<pad>", "</s>", "<unk>", "[UNK]", *pieces, "<mask>")
    return MPNetTokenizer(vocab=vocabulary, model_max_length=length)


def roberta(length: int) -> PreTrainedTokenizerBase:
    """RoBERTa's and BART's byte-level BPE with <s> first and <mask> last."""
    alphabet, merges = _merges(byte_level=True)
    vocabulary = _numbered("<s>", "<pad>", "</s>", "<unk>", *alphabet, "<mask>")
    return RobertaTokenizer(vocab=vocabulary, merges=list(merges), model_max_length=length)


def gpt2(length: int) -> PreTrainedTokenizerBase:
    """GPT-2's byte-level BPE: one special token, no padding token, nothing added to a text."""
    alphabet, merges = _merges(byte_level=True)
    vocabulary = _numbered(*alphabet, "<|endoftext|>")
    return GPT2Tokenizer(vocab=vocabulary, merges=list(merges), model_max_length=length)


def merges_of_bytes() -> list[tuple[str, str]]:
    """Merges of the byte-level tokenizers."""
    return list(_merges(byte_level=True)[1])


def gpt_neox(length: int) -> PreTrainedTokenizerBase:
    """GPT-NeoX's byte-level BPE, which has a <|padding|> token."""
    alphabet, merges = _merges(byte_level=True)
    vocabulary = _numbered("<|endoftext|>", "<|padding|>", *alphabet)
    return GPTNeoXTokenizer(vocab=vocabulary, merges=list(merges), model_max_length=length)


def opt(length: int) -> PreTrainedTokenizerBase:
    """OPT's: GPT-2's class, RoBERTa's ids, and </s> put before every text."""
    alphabet, merges = _merges(byte_level=True)
    vocabulary = _numbered("<s>", "<pad>", "</s>", "<unk>", *alphabet)
    tokenizer = GPT2Tokenizer(
        vocab=vocabulary,
        merges=list(merges),
        bos_token="</s>",
        eos_token="</s>",
        unk_token="</s>",
        pad_token="<pad>",
        add_bos_token=True,
        model_max_length=length,
    )
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="</s> $A", pair="</s> $A </s> $B", special_tokens=[("</s>", 2)]
    )
    return tokenizer


def bloom(length: int) -> PreTrainedTokenizerBase:
    """BLOOM's byte-level BPE: a plain fast tokenizer that pads on the left."""
    alphabet, merges = _merges(byte_level=True)
    vocabulary = _numbered("<unk>", "<s>", "</s>", "<pad>", *alphabet)
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges)))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=core, padding_side="left", model_max_length=length, **names)


def llama(length: int) -> PreTrainedTokenizerBase:
    """Llama's and Mistral's: BPE over ▁ with bytes to fall back on, <s> put first, no padding token."""
    alphabet, merges = _merges(byte_level=False)
    vocabulary = _numbered("<unk>", "<s>", "</s>", *_BYTES, *alphabet)
    return LlamaTokenizer(
        vocab=vocabulary,
        merges=list(merges),
        add_bos_token=True,
        add_eos_token=False,
        model_max_length=length,
    )


def qwen2(length: int) -> PreTrainedTokenizerBase:
    """Qwen's byte-level BPE: pads with <|endoftext|>, ends a turn with <|im_end|>, adds nothing to a text."""
    alphabet, merges = _merges(byte_level=True)
    vocabulary = _numbered(*alphabet, "<|endoftext|>", "<|im_start|>", "<|im_end|>")
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=list(merges), eos_token="<|im_end|>", model_max_length=length)
    tokenizer.add_tokens([AddedToken("<|im_start|>", special=True)], special_tokens=True)
    return tokenizer


def gemma(length: int) -> PreTrainedTokenizerBase:
    """Gemma's: BPE over ▁ with bytes to fall back on, <bos> put first, turns marked, pads on the left."""
    alphabet, merges = _merges(byte_level=False)
    marks = ("<start_of_turn>", "<end_of_turn>")
    vocabulary = _numbered("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *marks, *_BYTES, *alphabet)
    tokenizer = GemmaTokenizer(
        vocab=vocabulary,
        merges=list(merges),
        padding_side="left",
        add_bos_token=True,
        add_eos_token=False,
        model_max_length=length,
    )
    tokenizer.add_tokens([AddedToken(mark, special=True) for mark in marks], special_tokens=True)
    return tokenizer


def _scored(*tokens: str) -> list[tuple[str, float]]:
    return [(token, 0.0) for token in tokens]


def xlm_roberta(length: int) -> PreTrainedTokenizerBase:
    """XLM-R's unigram pieces with RoBERTa's special tokens."""
    vocabulary = [*_scored("<s>", "<pad>", "</s>", "<unk>"), *_pieces(), *_scored("<mask>")]
    return XLMRobertaTokenizer(vocab=vocabulary, model_max_length=length)


def albert(length: int) -> PreTrainedTokenizerBase:
    """ALBERT's unigram pieces, lower-cased."""
    vocabulary = [*_scored("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"), *_pieces(cased=False)]
    return AlbertTokenizer(vocab=vocabulary, model_max_length=length)


def deberta_v2(length: int) -> PreTrainedTokenizerBase:
    """DeBERTa's unigram pieces, cased."""
    vocabulary = [*_scored("[PAD]", "[CLS]", "[SEP]", "[UNK]"), *_pieces(), *_scored("[MASK]")]
    return DebertaV2Tokenizer(vocab=vocabulary, model_max_length=length)


def t5(length: int) -> PreTrainedTokenizerBase:
    """T5's unigram pieces with ten <extra_id_N> instead of a hundred; </s> put last."""
    extras = _scored(*(f"<extra_id_{number}>" for number in reversed(range(10))))
    vocabulary = [*_scored("<pad>", "</s>", "<unk>"), *_pieces(), *extras]
    return T5Tokenizer(vocab=vocabulary, extra_ids=10, model_max_length=length)


def marian(length: int) -> PreTrainedTokenizerBase:
    """Marian's two SentencePiece files (here the same model) beside a JSON vocabulary; </s> put last."""
    vocabulary = _numbered("</s>", "<unk>", *(piece for piece, _ in _pieces()), "<pad>")
    with TemporaryDirectory() as folder:
        for name in ("source.spm", "target.spm"):
            (Path(folder) / name).write_bytes(_sentencepiece_model())
        (Path(folder) / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
        options: dict[str, Any] = {"source_lang": "en", "target_lang": "de", "model_max_length": length}
        return MarianTokenizer.from_pretrained(folder, **options)


bert_cased: Make = partial(bert, cased=True)
