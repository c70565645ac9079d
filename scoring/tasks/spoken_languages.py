"""Languages of a Whisper: from its generation config, or, where older folders have none there, from its tokenizer."""

from typing import Any

from scoring.errors import LoadError

_ENGLISH_ONLY = 51_864  # tokens of OpenAI's models of English alone, whose tokenizers have the languages too


def language_codes(model: Any, tokenizer: Any) -> dict[str, int]:
    """Ids of language tokens, as <|de|>; none for a model of English alone.

    What the generation config lacks is added to it, since transformers' generation reads languages and tasks there.
    Raises LoadError for a model of many languages whose tokenizer has none.
    """
    config = model.generation_config
    if told := dict(getattr(config, "lang_to_id", None) or {}):
        return told
    many = getattr(config, "is_multilingual", None)
    if many is False or (many is None and model.config.vocab_size == _ENGLISH_ONLY):
        return {}
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    known = tokenizer.get_vocab()
    found = {token: known[token] for token in (f"<|{code}|>" for code in LANGUAGES) if token in known}
    tasks = {name: known[f"<|{name}|>"] for name in ("transcribe", "translate") if f"<|{name}|>" in known}
    if not (found and tasks):
        if many is None:
            return {}
        raise LoadError(
            "The model is of many languages, and neither its generation_config.json nor its tokenizer names them.",
            "Add lang_to_id and task_to_id to generation_config.json.",
        )
    config.lang_to_id, config.task_to_id, config.is_multilingual = found, tasks, True
    return found
