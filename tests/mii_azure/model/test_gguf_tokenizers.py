"""Tokenizers out of GGUF: what they are known by, equal to the original on awkward texts, or refused by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import gguf
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from mii_azure.errors import NotAvailable, TokenizerMissing
from mii_azure.hardware.skus import load_data
from mii_azure.model.gguf_header import read_header
from mii_azure.model.gguf_tokenizer import ends_of, refuse_unknown, tokenizer_of
from tests import tiny_tokenizers
from tests.tiny_gguf import finish, write_vocabulary

TEXTS = (
    "The river Aare",
    " leading, and trailing  ",
    "   \n\n\t three   spaces\r\n",
    "1 12 123 1234 12345 3.14159 1,000,000",
    "don't we'll I'D THEY'RE it's",
    "日本語のテキスト、中文字符。한국어",
    "🙂👩‍👩‍👧 🇨🇭",
    "e\u0301 Å \ufb01 \u200b \u00a0x",
    "<|im_start|>user\nHi<|im_end|> <think>x</think> <s></s><unk><bos><end_of_turn>",
    "camelCase snake_case ALLCAPS HTTPServer ÜBER",
    '!!!... (a+b)*c==d {"k": [1,2]} \\n </html>',
    "",
)
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


def _split(pattern: str) -> Any:
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _usual(*before: Any, after: Iterable[Any] = ()) -> Any:
    return pre_tokenizers.Sequence([*before, pre_tokenizers.ByteLevel(add_prefix_space=False), *after])


#: Pre-tokenizers as the published tokenizer.json have them, with how words of the vocabulary, NFC and BOS are.
ORIGINALS: dict[str, tuple[Any, bool, bool, bool]] = {
    "gpt-2": (_usual(), False, False, False),
    "smollm": (_usual(pre_tokenizers.Digits(individual_digits=True)), False, False, False),
    "starcoder": (_usual(pre_tokenizers.Digits(individual_digits=True)), False, False, False),
    "refact": (_usual(pre_tokenizers.Digits(individual_digits=True)), False, False, False),
    "command-r": (_usual(pre_tokenizers.Digits(individual_digits=True)), False, True, False),
    "olmo": (_usual(), False, True, False),
    "falcon": (
        _usual(
            pre_tokenizers.Punctuation("contiguous"),
            after=[pre_tokenizers.Digits(), pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated")],
        ),
        False,
        False,
        False,
    ),
    "llama-bpe": (_split(_LLAMA3), True, False, True),
    "smaug-bpe": (_split(_LLAMA3), False, False, False),
    "qwen2": (_split(_QWEN2), False, True, False),
    "exaone": (_usual(pre_tokenizers.Digits(individual_digits=True)), False, False, False),
    "exaone4": (_usual(), False, False, False),
    "stablelm2": (_split(_QWEN2), False, False, False),
    "glm4": (_split(_LLAMA3), False, False, False),
    "chatglm-bpe": (_split(_LLAMA3), False, False, False),
}


def _of_bytes(split: Any, whole: bool, nfc: bool, bos: bool) -> PreTrainedTokenizerBase:
    """Byte-level tokenizer with marks of its own, and words that no merge makes."""
    trained = tiny_tokenizers.qwen2(128)
    pairs = tiny_tokenizers.merges_of_bytes()
    words = ["12", "123", "ĠAare", "日æľ¬", "Hi"]
    tokens = dict.fromkeys([*trained.convert_ids_to_tokens(range(len(trained))), *words, "<think>", "</think>", "<s>"])
    core = Tokenizer(models.BPE({each: at for at, each in enumerate(tokens)}, pairs, ignore_merges=whole))
    core.pre_tokenizer, core.decoder = split, decoders.ByteLevel()
    if nfc:
        core.normalizer = normalizers.NFC()
    marks = [AddedToken(each, special=True) for each in ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>")]
    core.add_special_tokens(marks)
    core.add_tokens([AddedToken(each, normalized=False) for each in ("<think>", "</think>")])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="<|im_end|>", add_bos_token=bos, add_eos_token=False
    )


def _file(path: Path, tokenizer: PreTrainedTokenizerBase, kind: str, split: str, architecture: str = "llama") -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    write_vocabulary(writer, tokenizer, kind, split)
    finish(writer)
    return path


def _same(ours: Any, original: Any) -> None:
    for text in TEXTS:
        assert ours(text).input_ids == original(text).input_ids, text
        assert ours(text, add_special_tokens=False).tokens() == original(text, add_special_tokens=False).tokens()
        numbers = original(text).input_ids
        for skip in (True, False):
            assert ours.decode(numbers, skip_special_tokens=skip) == original.decode(numbers, skip_special_tokens=skip)


@pytest.mark.parametrize("name", ORIGINALS)
def test_bytes_are_split_as_the_original_splits_them(name: str, tmp_path: Path) -> None:
    original = _of_bytes(*ORIGINALS[name])
    ours = tokenizer_of(read_header(_file(tmp_path / "a.gguf", original, "gpt2", name)), 128)
    _same(ours, original)
    ours.save_pretrained(tmp_path)
    _same(PreTrainedTokenizerFast.from_pretrained(tmp_path), original)


@pytest.mark.parametrize(
    ("architecture", "make"),
    [("llama", tiny_tokenizers.llama), ("gemma2", tiny_tokenizers.gemma), ("gemma3", tiny_tokenizers.gemma)],
)
def test_pieces_are_those_of_the_original(
    architecture: str, make: Callable[[int], PreTrainedTokenizerBase], tmp_path: Path
) -> None:
    original = make(128)
    ours = tokenizer_of(read_header(_file(tmp_path / "a.gguf", original, "llama", "default", architecture)), 128)
    _same(ours, original)


def test_phi3_begins_as_its_own_and_takes_the_spaces_after_its_marks(tmp_path: Path) -> None:
    plain = tiny_tokenizers.llama(128)
    plain.add_tokens([AddedToken("<|user|>", rstrip=True, special=True)], special_tokens=True)
    plain.add_tokens([AddedToken("<|own|>", rstrip=True, normalized=False)])
    core = plain.backend_tokenizer
    core.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    core.pre_tokenizer = None
    file = _file(tmp_path / "a.gguf", plain, "llama", "default", "phi3")
    ours = tokenizer_of(read_header(file), 128)
    ours.save_pretrained(tmp_path)
    for each in (ours, PreTrainedTokenizerFast.from_pretrained(tmp_path)):
        for text in (*TEXTS, "<|user|>\n  Hi <|user|> x <|own|>  y"):
            assert each(text).input_ids == plain(text).input_ids, text


def test_pieces_without_a_space_before_a_text(tmp_path: Path) -> None:
    def parts(writer: gguf.GGUFWriter) -> None:
        writer.add_add_space_prefix(False)
        writer.add_add_bos_token(False)

    original = tiny_tokenizers.llama(128)
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    write_vocabulary(writer, original, "llama", "default")
    parts(writer)
    finish(writer)
    ours = tokenizer_of(read_header(tmp_path / "a.gguf"), 128)
    assert ours("The").tokens()[0] == "T" != original("The", add_special_tokens=False).tokens()[0]
    assert ours.decode(ours(" The river").input_ids) == " The river"


def test_control_tokens_that_are_not_ascii_keep_their_numbers(tmp_path: Path) -> None:
    """As DeepSeek's; transformers' own conversion spells them in bytes, and adds them anew."""
    original = _of_bytes(*ORIGINALS["qwen2"])
    original.add_special_tokens({"bos_token": "<｜begin▁of▁sentence｜>"})
    header = read_header(_file(tmp_path / "a.gguf", original, "gpt2", "deepseek-r1-qwen"))
    ours = tokenizer_of(header, 128)
    text = "<｜begin▁of▁sentence｜>Hi"
    assert ours(text).input_ids == original(text).input_ids and len(ours) == len(original)


def test_every_split_that_transformers_knows_is_told_apart() -> None:
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    known = load_data("gguf")["pre_tokenizers"]
    assert GGUF_PRE_TOKENIZER_SPLITS.keys() <= known.keys()
    ours = {name for name, way in known.items() if "split" in way}
    assert known.keys() - GGUF_PRE_TOKENIZER_SPLITS.keys() == ours


@pytest.mark.parametrize(
    ("kind", "split", "told"),
    [
        ("gpt2", "viking", "splits texts as 'viking'"),
        ("gpt2", "default", "splits texts as 'default'"),
        ("gpt2", None, "does not tell how"),
        ("bert", "bert-bge", "tokenizer of the kind 'bert'"),
    ],
)
def test_what_is_not_known_is_refused_by_name(kind: str, split: str | None, told: str, tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_tokenizer_model(kind)
    if split:
        writer.add_tokenizer_pre(split)
    finish(writer)
    with pytest.raises(NotAvailable, match=told) as caught:
        refuse_unknown(read_header(tmp_path / "a.gguf"))
    assert caught.value.hint


def test_a_vocabulary_that_makes_no_tokenizer(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(["a", "b"])
    writer.add_token_merges(["a c"])
    finish(writer)
    with pytest.raises(TokenizerMissing, match=r"a\.gguf makes no tokenizer"):
        tokenizer_of(read_header(tmp_path / "a.gguf"), 128)


def test_tokens_that_end_an_answer(tmp_path: Path) -> None:
    """Gemma's files name <eos> alone, and a turn ends with another token."""
    original = tiny_tokenizers.gemma(128)
    header = read_header(_file(tmp_path / "a.gguf", original, "llama", "default", "gemma2"))
    assert original.convert_ids_to_tokens(ends_of(header)) == ["<eos>", "<end_of_turn>"]
