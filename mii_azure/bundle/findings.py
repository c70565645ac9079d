"""Findings about a bundle, from a check or from a question to Azure."""

from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict

from mii_azure import notebook

Severity = Literal["error", "warning", "info"]


class Finding(BaseModel):
    """Result of a check."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    severity: Severity
    message: str
    remedy: str
    file: str  # relative to the bundle or to the folder of YAML
    line: int | None = None
    limit: str  # the limit that the rule enforces
    fixable: bool  # True if `fix` can make the change


class Findings(list[Finding]):
    """Findings in the order of the rules; a list that notebooks show as a table."""

    def headline(self) -> str:
        """Count of findings of each severity, the worst first."""
        counts = {word: sum(each.severity == word for each in self) for word in get_args(Severity)}
        return ", ".join(f"{count} {word}{'s' * (count > 1)}" for word, count in counts.items() if count) or "none"

    def __repr__(self) -> str:
        lines = [f"{each.id} {each.severity}, {_place(each)}: {each.message}" for each in self]
        return "\n".join([f"Findings({self.headline()})", *lines])

    def _repr_html_(self) -> str:
        rows = [(each.id, each.severity, _place(each), each.message, each.remedy) for each in self]
        made = [notebook.table(("id", "severity", "where", "finding", "remedy"), rows)] if rows else []
        return notebook.page(f"findings: {self.headline()}", *made)


def _place(finding: Finding) -> str:
    """File of a finding, or the question that an answer of Azure is to."""
    return finding.file or str(getattr(finding, "question", ""))
