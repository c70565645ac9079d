"""Findings: what a check, or a question to Azure, says of a bundle."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

Severity = Literal["error", "warning", "info"]


class Finding(BaseModel):
    """What a check says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    severity: Severity
    message: str
    remedy: str
    file: str  # relative to the bundle or to the folder of YAML
    line: int | None = None
    limit: str  # what the rule goes by
    fixable: bool  # whether `fix` can make the change
