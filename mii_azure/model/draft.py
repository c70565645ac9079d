"""Draft models before they are loaded: a folder read, and its vocabulary compared with the model's."""

from pathlib import Path

from mii_azure.errors import DraftUnusable
from mii_azure.model.consistency import check_consistency, vocabulary
from mii_azure.model.folder import read_folder
from mii_azure.model.profile import Profile, profile
from mii_azure.model.remote_code import check_remote_code
from mii_azure.platform.paths import expanded, is_folder
from scoring.passes.families import NO_DRAFTS, RECURRENT, decoder_tier

#: Where the draft model's files are in a bundle, below its model/.
FOLDER = "draft_model"
_COMPARED = "A draft model is a smaller one of the same family, whose tokenizer has the same tokens."


def draft_folder(path: str) -> Path:
    """Folder of a draft model; raises DraftUnusable for any other."""
    folder = expanded(path)
    if not is_folder(folder):
        raise DraftUnusable(
            f"The draft model {path} is no folder.", "Give a folder; hf download --local-dir FOLDER makes one."
        )
    return folder


def read_draft(path: str) -> Profile:
    """Facts of a draft model; raises DraftUnusable for one that does not write text, and the ModelError branch."""
    found = read_folder(draft_folder(path), path)
    check_remote_code(found, None, False)
    check_consistency(found, False)
    facts = profile(found)
    tier, reason = decoder_tier(facts.family)
    if facts.kind != "decoder" or tier is None:
        told = "it writes no text" if facts.kind != "decoder" else reason
        raise DraftUnusable(f"{path} cannot draft: {told}.", _COMPARED)
    if facts.family in RECURRENT:
        raise DraftUnusable(f"{path} cannot draft: {NO_DRAFTS}.", _COMPARED)
    return facts


def require_same_vocabulary(model: Path, draft: Path) -> None:
    """Raise DraftUnusable unless both folders' tokenizers have the same tokens under the same ids."""
    own, other = vocabulary(model), vocabulary(draft)
    for folder, tokens in ((model, own), (draft, other)):
        if not tokens:
            raise DraftUnusable(
                f"{folder} has neither tokenizer.json nor vocab.json, so that vocabularies cannot be compared.",
                "Save its tokenizer again: AutoTokenizer.from_pretrained(...).save_pretrained(FOLDER).",
            )
    differing = sorted(number for number in own.keys() | other.keys() if own.get(number) != other.get(number))
    if differing:
        first = differing[0]
        raise DraftUnusable(
            f"The draft model {draft} has another vocabulary: {len(differing):,} tokens differ, the first is"
            f" {other.get(first)!a} instead of {own.get(first)!a} (id {first}).",
            _COMPARED,
        )
