"""Caller identity for the scoring package, used if the operator wants prompts of different API keys kept apart.

Enabled by `MII_AZURE_PREFIX_SALT=api-key`.
"""

import hashlib
import os
from collections.abc import Mapping

from local_runner.errors import RunnerFailed

VARIABLE = "MII_AZURE_PREFIX_SALT"
_BY_KEY = "api-key"


def told_apart() -> bool:
    """True if callers with different keys are kept apart; raises RunnerFailed for an unknown setting."""
    wanted = os.environ.get(VARIABLE, "")
    if wanted not in ("", _BY_KEY):
        raise RunnerFailed(f"{VARIABLE} is {wanted[:40]!r}.", f"It may be {_BY_KEY}, or not be there.")
    return wanted == _BY_KEY


def key_of(headers: Mapping[str, str]) -> str:
    """Key that a request carries, valid or not; empty without one."""
    kind, _, bearer = headers.get("authorization", "").partition(" ")
    return bearer.strip() if kind.lower() == "bearer" else headers.get("x-api-key") or headers.get("api-key", "")


def tell(headers: Mapping[str, str]) -> None:
    """Record the caller's key in this context, as a digest; all callers without a key count as one."""
    from scoring.host_api import caller

    caller.set(hashlib.sha256(key_of(headers).encode()).hexdigest())
