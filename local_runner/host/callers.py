"""Tells the scoring package who asks, where the operator wants the prompts of different API keys kept apart.

`MII_AZURE_PREFIX_SALT=api-key` asks for it.
"""

import hashlib
import os
from collections.abc import Mapping

from local_runner.errors import RunnerFailed

VARIABLE = "MII_AZURE_PREFIX_SALT"
_BY_KEY = "api-key"


def told_apart() -> bool:
    """Whether callers of different keys are kept apart; raises RunnerFailed for a word that is unknown."""
    wanted = os.environ.get(VARIABLE, "")
    if wanted not in ("", _BY_KEY):
        raise RunnerFailed(f"{VARIABLE} is {wanted[:40]!r}.", f"It may be {_BY_KEY}, or not be there.")
    return wanted == _BY_KEY


def key_of(headers: Mapping[str, str]) -> str:
    """The key that a request carries, whether it is a good one or not; empty without one."""
    kind, _, bearer = headers.get("authorization", "").partition(" ")
    return bearer.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "")


def tell(headers: Mapping[str, str]) -> None:
    """Say in this context which key asks, by a digest; all callers without one count as one."""
    from scoring.host_api import caller

    caller.set(hashlib.sha256(key_of(headers).encode()).hexdigest())
