"""Calls of a sliced model: the same call on every rank, and generation that stays in step.

Rank 0 alone knows stop texts, streams and cancelled requests: after every token it tells the others what was chosen
and which sequences have ended.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from scoring.ranks import Ranks

#: Arguments of `generate` that stay on rank 0.
_OWN = ("stopping_criteria", "streamer")


class InStep(StoppingCriteria):  # type: ignore[misc]
    """Rank 0's last tokens and ends, taken over by all ranks."""

    def __init__(self, own: StoppingCriteriaList | None, searching: bool) -> None:
        self._own = own
        self._searching = searching  # beams are the same everywhere: scores are, bit by bit

    def __call__(self, input_ids: Tensor, scores: Any, **rest: Any) -> Tensor:
        done = torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
        if self._own is not None:
            for criterion in self._own:
                done |= criterion(input_ids, scores, **rest)
        word = torch.stack([input_ids[:, -1], done.long()])
        dist.broadcast(word, 0)
        if not self._searching:
            input_ids[:, -1] = word[0]
        return word[1].bool()


class Caller:
    """A method of rank 0's model that all ranks run."""

    def __init__(self, name: str, method: Callable[..., Any], ranks: Ranks, inside: list[bool]) -> None:
        functools.update_wrapper(self, method)  # transformers reads the signature of forward
        self._name = name
        self._method = method
        self._ranks = ranks
        self._inside = inside  # one flag of the model: calls within a call are not sent

    def __call__(self, *positional: Any, **arguments: Any) -> Any:
        if self._inside[0]:
            return self._method(*positional, **arguments)
        if positional:
            arguments["input_ids"] = positional[0]
        sent = {key: _to(value, "cpu") for key, value in arguments.items() if key not in _OWN}
        sent["random"] = torch.get_rng_state()
        self._ranks.send((self._name, sent))
        self._inside[0] = True
        try:
            if self._name == "generate":
                own = arguments.pop("stopping_criteria", None)
                arguments["stopping_criteria"] = _in_step(own, arguments)
            return self._method(**arguments)
        except RuntimeError as error:
            raise self._ranks.fail(error) from error
        finally:
            self._inside[0] = False


def follow(method: Callable[..., Any], device: Any, arguments: dict[str, Any]) -> None:
    """Another rank's part of a call."""
    torch.set_rng_state(arguments.pop("random"))
    arguments = {key: _to(value, device) for key, value in arguments.items()}
    if method.__name__ == "generate":
        arguments["stopping_criteria"] = _in_step(None, arguments)
    with torch.inference_mode():
        method(**arguments)


def _in_step(own: StoppingCriteriaList | None, arguments: dict[str, Any]) -> StoppingCriteriaList:
    config = arguments.get("generation_config")
    beams = arguments.get("num_beams") or getattr(config, "num_beams", 1) or 1
    return StoppingCriteriaList([InStep(own, beams > 1)])


def _to(value: Any, device: Any) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value
