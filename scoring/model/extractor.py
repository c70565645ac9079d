"""Feature extractor of a model that takes sound, from its folder."""

from pathlib import Path
from typing import Any

from scoring.errors import LoadError


def feature_extractor(folder: Path) -> Any:
    """Transformers' feature extractor of a folder; raises LoadError where the folder does not say."""
    import transformers

    try:
        return transformers.AutoFeatureExtractor.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # whatever a folder's JSON makes transformers raise
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise LoadError(
            f"The feature extractor in the model folder cannot be loaded: {reason}.",
            "The folder needs preprocessor_config.json.",
        ) from error
