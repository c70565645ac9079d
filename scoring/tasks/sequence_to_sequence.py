"""summarization and translation with encoder-decoder models; answers have the shape of the pipelines of old.

Defaults are those of the model's config for the task (`task_specific_params`: T5's prefixes, beams and lengths), as
in those pipelines.
"""

import re
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from scoring.engine.row import Row
from scoring.errors import InvalidParameter, LoadError
from scoring.model.loaded import Loaded
from scoring.schema.requests import SummarizationParameters, TranslationParameters
from scoring.tasks.generation import Generative, Tokens

#: Names of languages with which T5 was trained.
_T5_LANGUAGES = {"en": "English", "de": "German", "fr": "French", "ro": "Romanian"}
_T5_TYPES = ("t5", "mt5", "umt5", "longt5")
_T5_PREFIX = re.compile(r"translate \w+ to \w+: ")
_AZURE_TASK = re.compile(r"translation_([A-Za-z_-]+)_to_([A-Za-z_-]+)")

Pair = tuple[str | None, str | None]  # languages from and to


class SequenceToSequence(Generative):
    """Encoder-decoder generation: an encoder reads the text, a decoder writes the answer."""

    auto_class = "AutoModelForSeq2SeqLM"
    answer_key: ClassVar[str]

    def __init__(self, loaded: Loaded, name: str) -> None:
        super().__init__(loaded, name)
        self.tasks: dict[str, dict[str, Any]] = getattr(loaded.model.config, "task_specific_params", None) or {}

    def adopt(self, task: str) -> None:
        """Adopt the model config's parameters for a task as defaults of its requests."""
        known = self.defaults.to_dict()
        self.defaults.update(**{name: value for name, value in self.tasks.get(task, {}).items() if name in known})

    def prefix(self, task: str) -> str:
        """Prefix that the model's config puts before the texts of a task."""
        return str(self.tasks.get(task, {}).get("prefix") or "")

    @abstractmethod
    def tokens(self, value: str, parameters: Any, options: dict[str, Any]) -> tuple[Tokens, dict[str, Any]]:
        """Tokenise a text; return it with the settings that `generate` needs for it."""

    def encode(self, value: str, parameters: Any, item: int) -> list[Row]:
        limit = self.loaded.context_length if parameters.truncation else None
        tokens, overrides = self.tokens(value, parameters, {"truncation": parameters.truncation, "max_length": limit})
        self.check_length(len(tokens), item, 'Shorten it, or set "parameters": {"truncation": true}.')
        return self.generation_rows(tokens, parameters, item, **overrides)

    def decode(
        self, value: str, parameters: Any, rows: Sequence[Row], outputs: Sequence[list[Tokens]]
    ) -> list[dict[str, Any]]:
        return self.detailed([{self.answer_key: text} for text in self.texts(rows, outputs)], rows, outputs)

    def plain_text(self, entry: dict[str, Any]) -> str:
        return str(entry[self.answer_key])


class Summarization(SequenceToSequence):
    """Shortens a text."""

    name = "summarization"
    answer_key = "summary_text"

    def __init__(self, loaded: Loaded, name: str) -> None:
        super().__init__(loaded, name)
        self.adopt(name)

    def tokens(
        self, value: str, parameters: SummarizationParameters, options: dict[str, Any]
    ) -> tuple[Tokens, dict[str, Any]]:
        return self.call_tokenizer(self.prefix(self.name) + value, **options)["input_ids"], {}


class Translation(SequenceToSequence):
    """Translates a text: T5 by a prefix, mBART and its kind by language codes, Marian between its own two languages."""

    name = "translation"
    answer_key = "translation_text"

    def __init__(self, loaded: Loaded, name: str) -> None:
        super().__init__(loaded, name)
        self._known = [task for task in self.tasks if _AZURE_TASK.fullmatch(task)]
        self._default: Pair = loaded.options.get("src_lang"), loaded.options.get("tgt_lang")
        self._many = hasattr(self.tokenizer, "_build_translation_inputs")
        self._prefixed = bool(self._known) or loaded.model.config.model_type in _T5_TYPES
        if self._known:
            self.adopt(self._known[0])
        try:
            self._check_default()
        except InvalidParameter as error:
            raise LoadError(f"The deployment's languages cannot be had: {error.message}", error.hint) from error

    def _check_default(self) -> None:
        if self._many:
            for language, name in zip(self._default, ("src_lang", "tgt_lang"), strict=True):
                if language:
                    self._code(language, name)
        elif self._prefixed and self._default[1]:
            self._t5_prefix(self._default)
        elif not self._prefixed:
            self._check_fixed(self._default)

    def samples(self) -> Iterator[tuple[Any, dict[str, Any]]]:
        """Samples, between two of the model's languages if it needs them and the deployment sets none."""
        usual = list(super().samples())
        yield from usual
        codes = self._codes() if self._many else []
        for inputs, parameters in usual:
            yield from ((inputs, {**parameters, "src_lang": codes[0], "tgt_lang": code}) for code in codes[-1:])

    def tokens(
        self, value: str, parameters: TranslationParameters, options: dict[str, Any]
    ) -> tuple[Tokens, dict[str, Any]]:
        asked = _asked(parameters)
        if self._many:
            return self._coded(value, asked, options)
        if self._prefixed:
            if not _T5_PREFIX.match(value):
                value = self._t5_prefix(asked) + value
        else:
            self._check_fixed(asked)
        return self.call_tokenizer(value, **options)["input_ids"], {}

    def _t5_prefix(self, asked: Pair) -> str:
        src, tgt = asked if any(asked) else self._default
        if not (src or tgt):
            return self.prefix(self._known[0]) if self._known else ""
        src, tgt = src or self._default[0] or "en", tgt or self._default[1]
        if tgt is None:
            raise InvalidParameter("The language to translate to is missing.", "Set tgt_lang.", "parameters.tgt_lang")
        prefix = self.prefix(f"translation_{src}_to_{tgt}")
        if prefix:
            return prefix
        for name, code in (("src_lang", src), ("tgt_lang", tgt)):
            if code not in _T5_LANGUAGES:
                raise InvalidParameter(
                    f"T5 knows no language {code[:20]!r}.",
                    f"It knows {', '.join(_T5_LANGUAGES)}; for another, put the model's own prefix before the text.",
                    where=f"parameters.{name}",
                )
        return f"translate {_T5_LANGUAGES[src]} to {_T5_LANGUAGES[tgt]}: "

    def _check_fixed(self, asked: Pair) -> None:
        own = getattr(self.tokenizer, "source_lang", None), getattr(self.tokenizer, "target_lang", None)
        for name, code, mine in zip(("src_lang", "tgt_lang"), asked, own, strict=True):
            if code and code != mine:
                pair = f" from {own[0]} to {own[1]}" if all(own) else ""
                raise InvalidParameter(
                    f"This model translates between fixed languages{pair}; it cannot be told {code[:20]!r}.",
                    "Leave out src_lang, tgt_lang and task_type, or deploy a model of those languages.",
                    where=f"parameters.{name}",
                )

    def _coded(self, value: str, asked: Pair, options: dict[str, Any]) -> tuple[Tokens, dict[str, Any]]:
        own = getattr(self.tokenizer, "src_lang", None), getattr(self.tokenizer, "tgt_lang", None)
        src, tgt = (a or d or o for a, d, o in zip(asked, self._default, own, strict=True))
        src, tgt = self._code(src, "src_lang"), self._code(tgt, "tgt_lang")
        (value,) = self.call_tokenizer.bounded((value,), 0, options)
        with self.call_tokenizer.turn():  # the tokenizer keeps the languages as its state
            inputs = self.tokenizer._build_translation_inputs(
                value, return_tensors=None, src_lang=src, tgt_lang=tgt, **options
            )
        return inputs["input_ids"], {"forced_bos_token_id": int(inputs["forced_bos_token_id"])}

    def _codes(self) -> list[str]:
        return list(getattr(self.tokenizer, "lang_code_to_id", None) or self.tokenizer.extra_special_tokens)

    def _code(self, language: str | None, name: str) -> str:
        """The model's own code of a language: the name itself, or the one code that it abbreviates (en: en_XX)."""
        codes = self._codes()
        matching = [code for code in codes if code == language] or [
            code for code in codes if language and code.split("_")[0] == language
        ]
        if len(matching) != 1:
            said = f"knows no language {language[:20]!r}" if language else "has to be told the language"
            if matching:
                said = f"has several languages {language[:20]!r}" if language else said
            shown = ", ".join(sorted(matching or codes)[:12])
            raise InvalidParameter(f"This model {said}.", f"Its codes: {shown}, …", where=f"parameters.{name}")
        return matching[0]


def _asked(parameters: TranslationParameters) -> Pair:
    src = tgt = None
    if parameters.task_type and (named := _AZURE_TASK.fullmatch(parameters.task_type)):
        src, tgt = named.groups()
    return parameters.src_lang or src, parameters.tgt_lang or tgt
