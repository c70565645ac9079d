"""Findings about a bundle, from a check or from a question to Azure."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

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
