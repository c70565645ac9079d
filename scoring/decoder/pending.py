"""Tokens that a decoder is computing, or has computed."""

from typing import Protocol


class Pending(Protocol):
    """Tokens that are being computed."""

    def tokens(self) -> list[int]:
        """One token per slot asked for, in their order; waits for them."""


class Ready:
    """Tokens that are there."""

    def __init__(self, tokens: list[int]) -> None:
        self._tokens = tokens

    def tokens(self) -> list[int]:
        """The tokens."""
        return self._tokens
