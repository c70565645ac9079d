"""Cause of a refusal of Azure: how it is recognised, and what we make of it."""

from typing import NamedTuple

from mii_azure.errors import AzureError


class Cause(NamedTuple):
    """Row of the table: it fits an error with one of the codes, or a sentence in which the words are found."""

    codes: str  # of Azure, with blanks between
    words: str  # pattern, whatever the case
    error: type[AzureError]
    summary: str
    remedy: str
