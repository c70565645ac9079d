"""Experts of a model, of which a token goes through a few: their parameters, from config.json alone."""

from typing import Any, NamedTuple

from mii_azure.model.families import Family, fact

_MATRICES = 3  # of a gated MLP, as experts are
_MOST = 0.97  # of all parameters: what a config that says otherwise is cut to


class Experts(NamedTuple):
    """Parameters of all experts of all layers, and the share of them that one token is multiplied by."""

    parameters: int = 0
    share: float = 1.0


def experts_of(config: dict[str, Any], family: Family, layers: int, hidden: int, parameters: int) -> Experts:
    """Experts that config.json tells of; none for a model that is dense, or that does not say how wide they are."""
    count, chosen = (fact(config, family, name) or 0 for name in ("experts", "experts_per_token"))
    width = fact(config, family, "expert_size") or 0
    if not 0 < chosen < count or not width:
        return Experts()
    found = layers * count * _MATRICES * hidden * width
    return Experts(min(found, int(_MOST * parameters)), chosen / count)
