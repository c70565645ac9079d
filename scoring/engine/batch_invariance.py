"""Rows that may share a forward, found by trying the model: an answer must not depend on its batch.

Most models mask padding exactly. Some do not: convolutions and factored embeddings see their neighbours, some
models take no mask at all, experts with a capacity drop late tokens. So a row alone is compared with the same row
padded beside a longer one, and if its numbers change, with the same row beside rows of its own length.
"""

import logging
from collections.abc import Callable, Hashable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

logger = logging.getLogger("mii_azure.batch_invariance")

Mates = Literal["any", "equal", "none"]

#: Largest relative change that counts as rounding: other shapes take other kernels, which add in another order.
ROUNDING = {torch.float32: 3e-4, torch.float16: 5e-3, torch.bfloat16: 2e-2}
#: Config keys of the most tokens that an expert takes; further tokens of a batch are dropped.
_CAPACITIES = ("expert_capacity", "moe_eval_capacity_token_fraction")
_TOLD = {"any": "any length", "equal": "equal lengths", "none": "one row at a time"}

#: Runs the rows as one batch; returns for each row the numbers that its answer is made from.
Measure = Callable[[Any, Sequence[Any]], list[Tensor]]


@dataclass(frozen=True)
class Company:
    """Condition under which rows may share a forward: any rows, rows of equal length, or none."""

    mates: Mates = "any"
    reason: str = "padding changes no answer"

    def key(self, tokens: int) -> Hashable:
        """Part of a row's key: rows with equal keys share batches."""
        return None if self.mates == "any" else tokens if self.mates == "equal" else object()

    def to_dict(self) -> dict[str, str]:
        """Return the condition and its reason for metadata and logs."""
        return {"rows": _TOLD[self.mates], "reason": self.reason}


#: With `batch_invariant`: rows that share a forward change each other's last bits.
ALONE = Company("none", "batch_invariant was asked for; only a static decoder's slots give the same bits together")


def judge(model: Any, rows: Sequence[Any], twins: Sequence[Any], measure: Measure) -> Company:
    """Compare rows alone with the same rows together; `rows` differ in length, `twins` do not. Never raises.

    A change in 16 bits is judged again in float32, if there is memory for a copy.
    """
    if any(getattr(model.config, name, None) for name in _CAPACITIES):
        return Company("none", "its experts take so many tokens of a batch and no more")
    found = _judge(model, rows, twins, measure)
    if found.mates != "any" and model.dtype != torch.float32 and _copy_fits(model):
        found = _judge(deepcopy(model).float(), rows, twins, measure)
    return found


def _judge(model: Any, rows: Sequence[Any], twins: Sequence[Any], measure: Measure) -> Company:
    bound = ROUNDING.get(model.dtype, ROUNDING[torch.bfloat16])
    padded = moved(model, rows, measure)
    if padded <= bound:
        return Company()
    beside = moved(model, twins, measure)
    if beside <= bound:
        return Company("equal", f"padding moves its answers {_by(padded)}")
    return Company("none", f"rows of equal length move each other's answers {_by(beside)}")


def _by(movement: float) -> str:
    return f"by {movement:.0%}" if movement < float("inf") else "or fails"


def moved(model: Any, rows: Sequence[Any], measure: Measure) -> float:
    """Largest relative change (2-norms) of a row's numbers in a batch; infinite if it cannot be measured."""
    try:
        alone = [measure(model, [row])[0] for row in rows]
        together = measure(model, rows)
    except Exception as error:  # some forwards take one row only
        logger.info("rows cannot share a forward: %s", (str(error) or type(error).__name__).splitlines()[0])
        return float("inf")
    return movement(alone, together)


def movement(alone: Sequence[Tensor], together: Sequence[Tensor]) -> float:
    """Largest relative difference (2-norms) of the pairs, each relative to the larger of its own norm and the usual."""
    if any(one.shape != other.shape for one, other in zip(alone, together, strict=True)):
        return float("inf")
    usual = sum(float(one.norm()) for one in alone) / max(1, len(alone))
    worst = 0.0
    for one, other in zip(alone, together, strict=True):
        error = float((one - other).norm()) / max(float(one.norm()), usual, 1e-12)
        worst = max(worst, error if error == error else float("inf"))
    return worst


def _copy_fits(model: Any) -> bool:
    from scoring.decoder.verify import free_bytes

    needed = int(1.2 * 4.0 * sum(parameter.numel() for parameter in model.parameters()))
    return free_bytes(model.device) > needed


def lend(config: Any, pad: int | None) -> None:
    """Set a config's padding token; in a model of several parts, also its text config's."""
    config.pad_token_id = pad
    if (text := config.get_text_config()) is not config:
        text.pad_token_id = pad
