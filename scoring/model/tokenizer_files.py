"""Loads the tokenizer of a model folder, wherever its layout has it."""

from pathlib import Path
from typing import Any

from scoring.errors import LoadError


def tokenizer_of(folder: Path, trust_remote_code: bool) -> Any:
    """Load the tokenizer of a model folder; raises LoadError for one whose vocabulary is missing."""
    import transformers

    hint = "The folder needs tokenizer.json, or the vocabulary files of the model's own tokenizer."
    folder = _tokenizer_folder(folder)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=trust_remote_code
        )
    except Exception as error:
        raise LoadError(f"The tokenizer in the model folder cannot be loaded: {reason_of(error)}.", hint) from error
    own = type(tokenizer).vocab_files_names.values()  # none of a tokenizer of bytes or characters
    names = {"tokenizer.json", *own}
    if own and not any((folder / name).is_file() for name in names):
        # transformers would continue with an empty vocabulary, in which every word is unknown.
        raise LoadError(f"The model folder has no vocabulary for its {type(tokenizer).__name__} tokenizer.", hint)
    return tokenizer


def _tokenizer_folder(model: Path) -> Path:
    """The model's folder, or, if that has no tokenizer, the one beside it where MLflow's layouts put it."""
    beside = (model.parent / "tokenizer", model.parent / "components" / "tokenizer")
    candidates = [folder for folder in (model, *beside) if any(folder.glob("tokenizer*"))]
    return candidates[0] if candidates else model


def reason_of(error: Exception) -> str:
    """First line of what an error of transformers says, without a full stop."""
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__).rstrip(".")[:300]
