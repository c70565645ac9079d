"""Tokenizers of GGUF files, which name the way that they split texts: one that is not known is refused, not guessed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mii_azure.errors import NotAvailable, TokenizerMissing
from mii_azure.hardware.skus import load_data
from mii_azure.model.gguf_header import ORIGINAL, Header, TextList

_BYTES, _PIECES = "gpt2", "llama"
_CONTROL, _OWN = 3, 4  # types of tokens that are found whole in a text
_SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
#: Architecture whose marks take the spaces after them, but for these, as llama.cpp has it too.
_STRIPS, _KEEPS = "phi3", ("<unk>", "<s>", "<|endoftext|>")
_SPACE = "\u2581"


def refuse_unknown(header: Header) -> None:
    """Raise NotAvailable for a kind of tokenizer, or a way of splitting texts, that is not converted."""
    name, kind = header.file.name, _told(header, "model")
    if kind not in (_BYTES, _PIECES):
        raise NotAvailable(f"{name} has a tokenizer of the kind {kind!r}; converted are {_BYTES}, {_PIECES}.", ORIGINAL)
    if kind != _BYTES:
        return
    split, known = _told(header, "pre"), load_data("gguf")["pre_tokenizers"]
    if split is None:
        raise NotAvailable(
            f"{name} does not tell how its tokenizer splits texts (tokenizer.ggml.pre).",
            "Convert the model again with today's convert_hf_to_gguf.py of llama.cpp, or give it as it was published.",
        )
    if not isinstance(split, str) or split not in known:
        raise NotAvailable(
            f"{name} splits texts as {split!r} (tokenizer.ggml.pre); known are {', '.join(known)}.", ORIGINAL
        )


def tokenizer_of(header: Header, context: int) -> Any:
    """transformers' tokenizer of a file; raises TokenizerMissing for a vocabulary that does not make one."""
    from transformers import PreTrainedTokenizerFast

    try:
        core = _of_bytes(header) if _told(header, "model") == _BYTES else _of_pieces(header)
        tokens = header.fields["tokenizer.ggml.tokens"].decoded()
        named = {name: _token(header, tokens, key) for name, key in _SPECIAL.items()}
        settings = {"chat_template": header.fields.get("tokenizer.chat_template"), "model_max_length": context}
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=core,
            add_bos_token=bool(_begins(header) and named["bos_token"]),
            add_eos_token=bool(_told(header, "add_eos_token") and named["eos_token"]),
            clean_up_tokenization_spaces=False,
            **{key: told for key, told in (named | settings).items() if told is not None},
        )
    except Exception as error:  # whatever a vocabulary provokes in transformers and tokenizers
        raise TokenizerMissing(
            f"The vocabulary of {header.file.name} makes no tokenizer: {error}.", ORIGINAL
        ) from error
    _require_numbers(header, tokenizer, tokens)
    return tokenizer


def ends_of(header: Header) -> list[int]:
    """Numbers of the tokens that end an answer: the file's, and those by whose names llama.cpp knows them."""
    tokens = header.fields["tokenizer.ggml.tokens"].decoded()
    types = _types(header)
    ends = {tokens.index(end) for end in load_data("gguf")["ends"] if end in tokens}
    found = [_told(header, f"{name}_token_id") for name in ("eos", "eot", "eom")]
    found += sorted(number for number in ends if number < len(types) and types[number] in (_CONTROL, _OWN))
    return list(dict.fromkeys(each for each in found if isinstance(each, int) and each < len(tokens)))


def _told(header: Header, key: str) -> Any:
    return header.fields.get(f"tokenizer.ggml.{key}")


def _types(header: Header) -> list[int]:
    """Types of the tokens, by their numbers; empty where the file has none."""
    told = _told(header, "token_type")
    return told if isinstance(told, list) else []


def _token(header: Header, tokens: list[str], key: str) -> str | None:
    number = _told(header, f"{key}_token_id")
    return None if number is None else tokens[number]


def _begins(header: Header) -> bool:
    """True if a text begins with BOS."""
    told = _told(header, "add_bos_token")
    if told is not None or _told(header, "model") != _BYTES:
        return told is not False
    return bool(_way(header).get("bos"))


def _way(header: Header) -> Mapping[str, Any]:
    """Way in which a byte-level vocabulary splits texts."""
    found: Mapping[str, Any] = load_data("gguf")["pre_tokenizers"][_told(header, "pre")]
    return found


def _texts(header: Header, key: str) -> list[str]:
    told = _told(header, key)
    return told.decoded() if isinstance(told, TextList) else []


def _of_bytes(header: Header) -> Any:
    """Byte pairs. transformers' own spells control tokens in bytes that are not ASCII, and then does not find them."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

    tokens, way = _texts(header, "tokens"), _way(header)
    merges = [(left, right) for left, _, right in (each.partition(" ") for each in _texts(header, "merges"))]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=bool(way.get("whole"))))
    core.pre_tokenizer, core.decoder = _split(_told(header, "pre"), way), decoders.ByteLevel()
    if way.get("nfc"):
        core.normalizer = normalizers.NFC()
    kinds = list(zip(tokens, _types(header), strict=False))
    core.add_special_tokens([AddedToken(token, normalized=False) for token, kind in kinds if kind == _CONTROL])
    core.add_tokens([AddedToken(token, normalized=False) for token, kind in kinds if kind == _OWN])
    return core


def _split(name: str, way: Mapping[str, Any]) -> Any:
    """Pre-tokenizer of the original, by llama.cpp's name."""
    from tokenizers import Regex, pre_tokenizers
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    usual = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if way.get("split") == "digits":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), usual])
    if way.get("split") == "falcon":
        three = pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), behavior="isolated")
        digits = pre_tokenizers.Digits(individual_digits=False)
        return pre_tokenizers.Sequence([pre_tokenizers.Punctuation("contiguous"), usual, digits, three])
    if way.get("split") == "words":
        return usual
    split = pre_tokenizers.Split(Regex(GGUF_PRE_TOKENIZER_SPLITS[way.get("split", name)]), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _of_pieces(header: Header) -> Any:
    """SentencePiece's, as transformers makes it of the architecture's files."""
    from tokenizers import AddedToken, decoders, pre_tokenizers
    from transformers.integrations.gguf import convert_gguf_tokenizer

    told: dict[str, Any] = {"tokenizer_type": _PIECES, "tokens": _texts(header, "tokens")}
    told |= {name: _told(header, key) for name, key in (("scores", "scores"), ("token_type", "token_type"))}
    if merges := _texts(header, "merges"):
        told["merges"] = merges
    core, _ = convert_gguf_tokenizer(header.architecture, told)
    if header.architecture == _STRIPS:
        for kind, add in ((_CONTROL, core.add_special_tokens), (_OWN, core.add_tokens)):
            marks = [token for token, each in zip(told["tokens"], _types(header), strict=False) if each == kind]
            add([AddedToken(mark, rstrip=True, normalized=False) for mark in marks if mark not in _KEEPS])
    if _told(header, "add_space_prefix") is False and isinstance(core.pre_tokenizer, pre_tokenizers.Metaspace):
        core.pre_tokenizer = pre_tokenizers.Metaspace(_SPACE, prepend_scheme="never", split=False)
        core.decoder = decoders.Sequence([decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    return core


def _require_numbers(header: Header, tokenizer: Any, tokens: list[str]) -> None:
    """Raise TokenizerMissing where a token of the file has got another number, or there are more than it has."""
    numbers = tokenizer.get_vocab()
    types = _types(header)
    whole = [number for number, kind in enumerate(types) if kind in (_CONTROL, _OWN)]
    lost = next((number for number in whole if _is_lost(tokens[number], number, numbers)), None)
    if lost is not None or len(tokenizer) > len(tokens):
        told = f"{tokens[lost]!r}" if lost is not None else f"one of {len(tokenizer) - len(tokens)} more"
        raise TokenizerMissing(
            f"Converting the vocabulary of {header.file.name} gives another number to {told}.", ORIGINAL
        )


def _is_lost(token: str, number: int, numbers: Mapping[str, int]) -> bool:
    """True for a token of another number, or none; Gemma's tokens of spaces are spelled anew."""
    return numbers.get(token, -1 if token.strip() else number) != number
