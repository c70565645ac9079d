"""Languages of a sample request, for models of many languages that need a source and a target."""

from pathlib import Path
from typing import Any

from mii_azure.model import configs
from mii_azure.model.resolved import read_settings
from mii_azure.spec import Spec

#: A pair of each tokenizer's own codes, without the ending of the fast classes.
_PAIRS = {
    "NllbTokenizer": ("eng_Latn", "fra_Latn"),
    "MBartTokenizer": ("en_XX", "fr_XX"),
    "MBart50Tokenizer": ("en_XX", "fr_XX"),
    "M2M100Tokenizer": ("en", "fr"),
}


def with_languages(schema: dict[str, Any], spec: Spec, folder: Path | None) -> dict[str, Any]:
    """Return a task's schema with languages in its sample, if the model needs them and the deployment names none."""
    pair = _pair(folder) if spec.task == "translation" and not spec.languages and folder else None
    if pair is None:
        return schema
    sample = schema["sample"]
    named = {**sample.get("parameters", {}), "src_lang": pair[0], "tgt_lang": pair[1]}
    return {**schema, "sample": {**sample, "parameters": named}}


def _pair(folder: Path) -> tuple[str, str] | None:
    path = folder / "tokenizer_config.json"
    settings = read_settings(path) if path.is_file() else {}
    usual = _PAIRS.get((configs.value(settings, "tokenizer_class", str, path.name) or "").removesuffix("Fast"))
    listed = settings.get("extra_special_tokens") or settings.get("additional_special_tokens")
    codes = [code for code in listed if isinstance(code, str)] if isinstance(listed, list) else []
    if usual is None or len(codes) < 2 or set(usual) <= set(codes) or usual[0] == "en":
        return usual
    return codes[0], codes[-1]  # a model that was cut down to some of the languages
