"""Real text to calibrate and judge number formats on, as a model's own tokenizer cuts it: Python's own manual.

Random tokens are not what a model was trained on: their ranges are others', and every answer to them is a toss-up.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from scoring.encoder.buckets import longest_input
from scoring.encoder.verify import Batch, answers
from scoring.passes.base import PassRefused

CALIBRATION, JUDGED = 48, 100  # texts
LEAST_COSINE, LEAST_EQUAL = 0.99, 0.99  # of each embedding, and the share of equal labels
_TOKENS = 48  # of a text at most
_LETTERS = 0.9  # share of letters and blanks in a paragraph of prose


def paragraphs() -> list[str]:
    """Paragraphs of prose from the manual that every Python carries; raises PassRefused where it was left out."""
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise PassRefused("this Python lacks pydoc_data, whose text formats are judged on") from error
    found = [" ".join(part.split()) for name in sorted(topics) for part in topics[name].split("\n\n")]
    return [text for text in found if 40 < len(text) < 300 and _prose(text)]


def calibration(model: Any) -> list[Batch]:
    """Texts of one row each to calibrate on; raises PassRefused if the model's tokenizer gives none."""
    return _rows(model)[:CALIBRATION]


def judged(model: Any) -> list[Batch]:
    """Texts of one row each that nothing is calibrated on; raises PassRefused as `calibration` does."""
    return _rows(model)[CALIBRATION:]


class Judge:
    """Answers of the plain model to texts that nothing was calibrated on; make it before anything is changed."""

    def __init__(self, model: Any) -> None:
        self._told = [(row, answers(model, row)) for row in judged(model)]

    def fault(self, model: Any) -> str:
        """Compare a model's answers; return the reason why they are too far from the plain ones, or ""."""
        cosines, labels = [1.0], [True]
        for row, told in self._told:
            found = answers(model, row)
            for name, value in told.items():
                if name == "last_hidden_state":
                    one, other = (each[0].mean(0) for each in (found[name], value))
                    cosines.append(float(torch.cosine_similarity(one, other, 0)))
                elif name.endswith("logits") and value.shape[-1] > 1:
                    labels += (found[name].argmax(-1) == value.argmax(-1)).flatten().tolist()
        equal = sum(labels) / len(labels)
        if not min(cosines) >= LEAST_COSINE:
            return f"of {len(self._told)} texts one has a cosine of {min(cosines):.3f} to its plain embedding"
        return "" if equal >= LEAST_EQUAL else f"only {100 * equal:.1f} % of the labels stay as they were"


def _rows(model: Any) -> list[Batch]:
    folder = Path(str(getattr(model, "name_or_path", "")))
    if not (folder / "config.json").is_file():
        raise PassRefused("the model has no folder with a tokenizer, and text is needed to judge it by")
    most = min(_TOKENS, longest_input(model.config))
    try:
        rows = [torch.tensor([ids]) for ids in _tokenised(folder, most)]
    except (OSError, ValueError, KeyError) as error:
        raise PassRefused(f"its tokenizer reads no text to judge it by: {type(error).__name__}") from error
    if not all(ids.numel() > 0 and ids.max() < model.config.get_text_config().vocab_size for ids in rows):
        raise PassRefused("its tokenizer and its embeddings do not fit each other")
    return [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in rows]


@lru_cache(maxsize=1)
def _tokenised(folder: Path, most: int) -> list[list[int]]:
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    every = paragraphs()
    chosen = every[:: max(1, len(every) // (CALIBRATION + JUDGED))][: CALIBRATION + JUDGED]
    return [tokenizer(text, truncation=True, max_length=most)["input_ids"] for text in chosen]


def _prose(text: str) -> bool:
    return sum(each.isalpha() or each == " " for each in text) > _LETTERS * len(text)
