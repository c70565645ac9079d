"""Verdicts as files, which a pipeline can require before it deploys."""

from pathlib import Path

from pydantic import ValidationError

from mii_azure.errors import SpecError
from mii_azure.verdict.grade import ALIKE
from mii_azure.verdict.outcome import Verdict


def write_verdict(verdict: Verdict, file: Path) -> None:
    """Write a verdict as JSON. Raises SpecError if the file cannot be written."""
    try:
        file.write_text(verdict.model_dump_json(indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise SpecError(f"The verdict cannot be written to {file}: {error.strerror}.", "Name another file.") from None


def require_verdict(file: Path, bundle_hash: str) -> Verdict:
    """Read a verdict of yes on the bundle with that hash.

    Raises SpecError if the file holds no verdict, one of another bundle, a no, or a yes that its comparisons deny.
    """
    again = f"Run `mii-azure parity BUNDLE --output {file}` on the bundle as it is."
    try:
        verdict = Verdict.model_validate_json(file.read_bytes())
    except OSError as error:
        raise SpecError(f"The verdict {file} cannot be read: {error.strerror}.", again) from None
    except ValidationError:
        raise SpecError(f"{file} holds no verdict of a parity run.", again) from None
    if verdict.bundle_hash != bundle_hash:
        raise SpecError(
            f"The verdict {file} is on bundle {verdict.bundle_hash[:12]}, and this is {bundle_hash[:12]}.", again
        )
    if not verdict.agree:
        raise SpecError(f"The verdict {file} is no: {', '.join(verdict.targets)} answered differently.", again)
    if not (all(each.grade in ALIKE for each in verdict.comparisons) and all(each.agree for each in verdict.tokens)):
        raise SpecError(f"The verdict {file} says yes, and what it compared differs: it was changed.", again)
    return verdict
